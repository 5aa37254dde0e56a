#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of every record of a recorded stream, told without the program.

    join_oracle.py DIR [WINDOW_MS [LATENESS_MS]]

The rules are those of pipeline/join.h and the event contract, written down a second time, plainly:
dictionaries, a heap of deadlines, one event after the other. Prints one JSON object, for each topic
how many came in and how many ended as joined, expired, late, duplicate, orphan and rejected.

Times are taken to be whole seconds: the program looks at its deadlines once a second.
"""
import heapq
import json
import os
import subprocess
import sys

TOPICS = ["items", "ranker_scores", "impressions", "engagements"]  # the order of equal times
OUTCOMES = ["joined", "expired", "late", "duplicate", "orphan", "rejected"]
EARLY, OPEN, CLOSED, LOOSE = range(4)


def lines(directory, topic):
    path = os.path.join(directory, topic + ".jsonl")
    if os.path.exists(path):
        with open(path, "rb") as f:
            yield from f
    elif os.path.exists(path + ".zst"):
        with subprocess.Popen(["zstd", "-dcq", path + ".zst"], stdout=subprocess.PIPE) as p:
            yield from p.stdout


def decode(topic, line):
    """(ts, request, user, items, action) or None when it is not an event of the topic."""
    def name(value):
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise ValueError
        return value
    try:
        r = json.loads(line)
        ts = r["ts"]
        if isinstance(ts, bool) or not isinstance(ts, int):
            return None
        if topic == "items":
            return ts, None, None, [name(r["item_id"])], None
        user = name(r["user_id"])
        if topic == "engagements":
            request = r.get("request_id")
            action = name(r["action"])
            return (ts, name(request) if request is not None else None, user,
                    [name(r["item_id"])], action)
        shown = [(name(i["item_id"]), i.get("position", -1)) for i in r.get("items", [r])]
        return (ts, name(r["request_id"]), user, shown, None) if shown else None
    except (ValueError, KeyError, TypeError):
        return None


class Session:
    def __init__(self, ts, deadline, stage):
        self.ts, self.deadline, self.stage = ts, deadline, stage
        self.user, self.shown, self.waiting = None, [], []


class Join:
    def __init__(self, window, lateness):
        self.window, self.lateness = window, lateness
        self.watermark, self.sessions, self.heap, self.looses, self.puts = 0, {}, [], 0, 0
        self.open_of = {}  # user -> requests, oldest first
        self.counts = {t: dict.fromkeys(["in"] + OUTCOMES, 0) for t in TOPICS}

    def settle(self, topic, outcome, n=1):
        self.counts[topic][outcome] += n

    def put(self, name, deadline):
        self.sessions[name].deadline = deadline
        self.puts += 1
        heapq.heappush(self.heap, (max(deadline, self.watermark), self.puts, name))

    def session(self, name, ts, wait, stage=EARLY):
        if name not in self.sessions:
            self.sessions[name] = Session(ts, 0, stage)
            self.put(name, ts + wait)
        return self.sessions[name]

    def engage(self, session, ts, item, action):
        for shown in session.shown:
            if shown[0] != item:
                continue
            if action in shown[2]:
                return "duplicate"
            if ts - session.ts > self.window:
                return "late"
            if session.ts - ts > self.lateness:
                return "orphan"
            if session.stage == CLOSED:
                return "late"
            if not shown[2]:
                self.settle("impressions", "joined")
            shown[2].add(action)
            return "joined"
        return "orphan"

    def last_touch(self, user, ts, item):
        best = None
        for name in reversed(self.open_of.get(user, [])):
            session = self.sessions[name]
            if session.ts <= ts and any(shown[0] == item for shown in session.shown) and \
                    (best is None or session.ts > best.ts):
                best = session
        return best

    def expire(self, name):
        session = self.sessions[name]
        if session.deadline > self.watermark:
            self.put(name, session.deadline)
            return
        waiting, session.waiting = session.waiting, []
        for topic, ts, item, action in waiting:
            if session.stage == LOOSE:
                found = self.last_touch(session.user, ts, item)
                self.settle(topic, self.engage(found, ts, item, action) if found else "orphan")
            else:
                self.settle(topic, "orphan")
        if session.stage != OPEN:
            del self.sessions[name]
            return
        self.settle("impressions", "expired", sum(not shown[2] for shown in session.shown))
        self.open_of[session.user].remove(name)
        session.stage = CLOSED
        self.put(name, session.deadline + self.window)

    def advance(self, watermark):
        if watermark <= self.watermark:
            return
        self.watermark = watermark
        due = []
        while self.heap and self.heap[0][0] < watermark:
            due.append(heapq.heappop(self.heap)[2])
        for name in due:
            self.expire(name)

    def impression(self, ts, request, user, shown):
        if ts + self.window <= self.watermark:
            return self.settle("impressions", "late", len(shown))
        session = self.session(request, ts, self.window)
        if session.stage == CLOSED:
            return self.settle("impressions", "late", len(shown))
        if session.stage == EARLY:
            session.stage, session.ts, session.user = OPEN, ts, user
            session.deadline = ts + self.window
            self.open_of.setdefault(user, []).append(request)
        elif session.user != user:
            return self.settle("impressions", "duplicate", len(shown))
        for item, position in shown:
            if any(s[0] == item and (s[1] == position or position < 0) for s in session.shown):
                self.settle("impressions", "duplicate")
            else:
                session.shown.append((item, position, set()))
        waiting, session.waiting = session.waiting, []
        for topic, at, item, action in waiting:
            if topic == "ranker_scores":
                self.settle(topic, "joined")
                continue
            outcome = self.engage(session, at, item, action)
            if outcome == "orphan":
                session.waiting.append((topic, at, item, action))
            else:
                self.settle(topic, outcome)

    def engagement(self, ts, request, user, item, action):
        topic = "engagements"
        if request is None:
            found = self.last_touch(user, ts, item)
            if found:
                return self.settle(topic, self.engage(found, ts, item, action))
            self.looses += 1
            session = self.session(("loose", self.looses), ts, self.lateness, LOOSE)
            session.user = user
            return session.waiting.append((topic, ts, item, action))
        session = self.session(request, ts, self.lateness)
        outcome = "orphan"
        if session.stage in (OPEN, CLOSED):
            outcome = self.engage(session, ts, item, action)
        if outcome != "orphan" or session.stage == CLOSED:
            return self.settle(topic, outcome)
        session.waiting.append((topic, ts, item, action))

    def score(self, ts, request):
        session = self.session(request, ts, self.lateness)
        if session.stage == OPEN:
            self.settle("ranker_scores", "joined")
        elif session.stage == CLOSED:
            self.settle("ranker_scores", "late")
        else:
            session.waiting.append(("ranker_scores", ts, None, None))


def main():
    directory = sys.argv[1]
    window = int(sys.argv[2]) if len(sys.argv) > 2 else 1800000
    lateness = int(sys.argv[3]) if len(sys.argv) > 3 else 10000
    join = Join(window, lateness)
    events = []
    for rank, topic in enumerate(TOPICS):
        latest = 0
        for offset, line in enumerate(lines(directory, topic)):
            if not line.strip():
                continue
            event = decode(topic, line)
            if event is None:
                join.counts[topic]["in"] += 1
                join.settle(topic, "rejected")
                continue
            latest = max(latest, event[0])
            events.append((latest, rank, offset, event))
    events.sort(key=lambda e: e[:3])
    for latest, rank, _, (ts, request, user, items, action) in events:
        topic = TOPICS[rank]
        join.advance(latest)
        join.counts[topic]["in"] += len(items) if topic == "impressions" else 1
        if topic == "items":
            join.settle(topic, "joined")
        elif topic == "ranker_scores":
            join.score(ts, request)
        elif topic == "impressions":
            join.impression(ts, request, user, items)
        else:
            join.engagement(ts, request, user, items[0], action)
    while join.sessions:
        join.advance(max(join.watermark, max(s.deadline for s in join.sessions.values())) + 1000)
    print(json.dumps(join.counts))


main()
