#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The slates of a stream, told without the program.

    slate_oracle.py make DIR SEED
    slate_oracle.py check DIR DUMP WINDOW_MS LATENESS_MS DELAY_MS AGE_MS TASK...

make writes a small stream with all that can happen to scores: early, late, stale, twice, of two
versions, of items nobody knows, of tasks nobody named. check makes the slates of a stream by the
rules of pipeline/join.h and model/slate.h, written down a second time, plainly, and compares them
with DUMP, one line for each slate and each counter, in any order. It prints what differs first and
exits with 1, or `slates N labels N masked N`.

Times are taken to be whole seconds: the program looks at its deadlines once a second.
"""
import heapq
import json
import os
import random
import struct
import subprocess
import sys

TOPICS = ["items", "ranker_scores", "impressions", "engagements"]  # the order of equal times
EARLY, OPEN, CLOSED, LOOSE = range(4)
ITEMS_MAX, LIST_BYTES, UNKNOWN = 64, 16384, 1 << 20


def lines(directory, topic):
    path = os.path.join(directory, topic + ".jsonl")
    if os.path.exists(path):
        with open(path, "rb") as f:
            yield from f
    elif os.path.exists(path + ".zst"):
        with subprocess.Popen(["zstd", "-dcq", path + ".zst"], stdout=subprocess.PIPE) as p:
            yield from p.stdout


def single(x):
    return struct.unpack("f", struct.pack("f", x))[0]


class Request:
    def __init__(self, ts, stage):
        self.ts, self.stage, self.user, self.surface, self.early_left = ts, stage, None, 0, False
        self.shown, self.scores, self.waiting = [], [], []


class Shown:
    def __init__(self, owner, item, position, propensity):
        self.owner, self.item, self.position, self.propensity = owner, item, position, propensity
        self.actions = set()


class Join:
    def __init__(self, window, lateness, delay, age_max, tasks):
        self.window, self.lateness, self.age_max, self.tasks = window, lateness, age_max, tasks
        self.delay = delay if 0 < delay < window else 0
        self.watermark, self.at, self.puts, self.wheel, self.looses = None, None, 0, [], 0
        self.requests, self.open_of, self.owners, self.made = {}, {}, {}, 0
        self.surfaces, self.rankers, self.out, self.counts = [], [], [], {}

    def count(self, name, n=1):
        self.counts[name] = self.counts.get(name, 0) + n

    # Items: whoever sees one gives it an owner number, until it is removed.
    def see(self, item):
        if item not in self.owners:
            self.made += 1
            self.owners[item] = self.made
        return self.owners[item]

    def valid(self, entry):
        return self.owners.get(entry.item) == entry.owner

    def task(self, name):
        if name in self.tasks:
            return self.tasks.index(name)
        return self.tasks.index("*") if "*" in self.tasks else None

    def labels(self, actions):
        return {self.task(a) for a in actions} - {None}

    @staticmethod
    def number(names, name, most):
        if name not in names:
            if len(names) == most or len(name.encode()) > 62:
                return 0
            names.append(name)
        return names.index(name) + 1

    # Deadlines, by the second.
    def put(self, name, deadline):
        second = deadline // 1000
        if self.at is not None:
            second = max(second, self.at)
        self.puts += 1
        heapq.heappush(self.wheel, (second, self.puts, name, deadline))

    def request(self, name, ts, wait, stage=EARLY):
        if name not in self.requests:
            self.requests[name] = Request(ts, stage)
            self.put(name, ts + wait)
        return self.requests[name]

    def advance(self, watermark):
        if self.watermark is not None and watermark <= self.watermark:
            return
        self.watermark = watermark
        while self.wheel and self.wheel[0][0] < watermark // 1000:
            second, _, name, deadline = heapq.heappop(self.wheel)
            self.at = second + 1
            self.expire(name, deadline)
        self.at = watermark // 1000

    def expire(self, name, deadline):
        r = self.requests[name]
        if r.stage == OPEN:
            deadline = r.ts + (self.delay if self.delay and not r.early_left else self.window)
        if deadline > self.watermark:
            self.put(name, deadline)
            return
        if r.stage == OPEN:
            if self.delay and not r.early_left:
                self.early(r)
                if (r.ts + self.window) // 1000 >= self.at:
                    self.put(name, r.ts + self.window)
                    return
            self.close(r)
            self.open_of[r.user].remove(name)
            r.stage, r.waiting, r.scores = CLOSED, [], []
            self.put(name, r.ts + 2 * self.window)
            return
        if r.stage == LOOSE:
            for ts, owner, item, action in r.waiting:
                found = self.last_touch(r.user, ts, owner)
                if found:
                    self.engage(found, ts, owner, action)
        del self.requests[name]

    # Slates.
    def emit(self, kind, r, entries, ranker=0, repeated=0):
        text = [f"{kind} {r.user} {r.surface} {ranker} {repeated} {r.ts}"]
        for s, shown, labels, scores in entries:
            bits = sum(1 << t for t in labels)
            numbers = ",".join("nan" if x is None else "%.6g" % x for x in scores)
            position = s.position if shown else -1
            propensity = "%.6g" % (s.propensity if shown else 0)
            text.append(f"{s.item}:{position}:{int(shown)}:{bits}:{propensity}:{numbers}")
        self.out.append(" ".join(text))

    def entries(self, r):
        """Shown items in order, and how many were cut."""
        order = sorted((s for s in r.shown if self.valid(s)),
                       key=lambda s: UNKNOWN if s.position < 0 else s.position)
        first = [s for s in order if self.labels(s.actions)]
        first += [s for s in order if not self.labels(s.actions)]
        taken = {id(s) for s in first[:ITEMS_MAX]}
        none = [None] * len(self.tasks)
        kept = [(s, True, self.labels(s.actions), none) for s in order if id(s) in taken]
        return kept, len(order) - len(kept)

    def early(self, r):
        r.early_left = True
        kept, _ = self.entries(r)
        if kept:
            self.count("slates_early")
            self.emit(1, r, kept)

    def close(self, r):
        if not r.shown:
            return
        versions = []
        for s in r.scores:
            if self.valid(s) and s.ranker not in versions:
                versions.append(s.ranker)
        for i, version in enumerate(versions or [0]):
            kept, cut = self.entries(r)
            own = [s for s in r.scores if self.valid(s) and s.ranker == version]
            by_owner = {s.owner: s.scores for s in own}
            shown = {s.owner for s in r.shown}
            kept = [(s, True, labels, by_owner.get(s.owner, none)) for s, _, labels, none in kept]
            alone = [s for s in own if s.owner not in shown]
            cut += max(0, len(kept) + len(alone) - ITEMS_MAX)
            kept += [(s, False, set(), s.scores) for s in alone[:ITEMS_MAX - len(kept)]]
            if not kept:
                self.count("slates_expired")
                return
            self.count("slate_items_scored", sum(any(x is not None for x in e[3]) for e in kept))
            self.count("slates_split" if i else "slates_closed")
            if i == 0:
                self.count("slates_untaught", version == 0)
                self.count("slate_items", len(kept))
                self.count("slate_items_cut", cut)
                self.count("slate_labels", sum(len(e[2]) for e in kept))
            self.emit(0, r, kept, version, int(i > 0))

    # Records.
    def engage(self, r, ts, owner, action):
        for s in r.shown:
            if s.owner != owner:
                continue
            if action in s.actions or ts - r.ts > self.window:
                return True
            if r.ts - ts > self.lateness:
                return False
            if r.stage == CLOSED:
                return True
            before = self.labels(s.actions)
            s.actions.add(action)
            self.count("engagements_without_task", self.task(action) is None)
            late = self.labels(s.actions) - before
            if r.early_left and late and self.valid(s):
                self.count("slates_late_positive")
                self.emit(2, r, [(s, True, late, [None] * len(self.tasks))])
            return True
        return False

    def last_touch(self, user, ts, owner):
        best = None
        for name in self.open_of.get(user, [])[:-1025:-1]:
            r = self.requests[name]
            if r.ts <= ts and any(s.owner == owner for s in r.shown) and \
                    (best is None or r.ts > best.ts):
                best = r
        return best

    def impressions(self, record):
        ts, user = record["ts"], record["user_id"]
        if self.watermark is not None and ts + self.window <= self.watermark:
            return
        name = record["request_id"]
        r = self.request(name, ts, self.delay or self.window)
        if r.stage == CLOSED:
            return
        if r.stage == EARLY:
            r.stage, r.ts, r.user = OPEN, ts, user
            fresh = [s for s in r.scores if not self.age_max or ts - s.ts <= self.age_max]
            self.count("scores_stale", len(r.scores) - len(fresh))
            r.scores = fresh
            if record.get("surface"):
                r.surface = self.number(self.surfaces, record["surface"], 7)
                self.count("surfaces_unnumbered", r.surface == 0)
            self.open_of.setdefault(user, []).append(name)
        elif r.user != user:
            return
        for i in record.get("items", [record]):
            owner, position = self.see(i["item_id"]), min(i.get("position", -1), 32767)
            if not any(s.owner == owner and (s.position == position or position < 0)
                       for s in r.shown):
                r.shown.append(Shown(owner, i["item_id"], position, single(i.get("propensity", 0))))
        waiting, r.waiting = r.waiting, []
        for w in waiting:
            if w is not None and not self.engage(r, w[0], w[1], w[3]):
                r.waiting.append(w)

    def engagement(self, record):
        ts, item, action = record["ts"], record["item_id"], record["action"]
        owner, name = self.see(item), record.get("request_id")
        if name is None:
            r = self.last_touch(record["user_id"], ts, owner)
            if r:
                self.engage(r, ts, owner, action)
                return
            self.looses += 1
            r = self.request(("loose", self.looses), ts, self.lateness, LOOSE)
            r.user = record["user_id"]
        else:
            r = self.request(name, ts, self.lateness)
            if r.stage in (OPEN, CLOSED) and (self.engage(r, ts, owner, action) or
                                              r.stage == CLOSED):
                return
        r.waiting.append((ts, owner, item, action))

    def score(self, record):
        ts, items = record["ts"], record["items"]
        r = self.request(record["request_id"], ts, self.lateness)
        if r.stage == CLOSED:
            self.count("scores_late", len(items))
            return
        if r.stage == EARLY:
            r.waiting.append(None)
        if r.stage == OPEN and self.age_max and r.ts - ts > self.age_max:
            self.count("scores_stale", len(items))
            return
        ranker = self.number(self.rankers, record.get("ranker", ""), 255)
        if ranker == 0:
            self.count("scores_unknown_ranker", len(items))
            return
        for i in items:
            if i["item_id"] not in self.owners:
                self.count("scores_unknown_item")
                continue
            scores = [None] * len(self.tasks)
            for name, score in i["scores"].items():
                task = self.task(name)
                if task is None:
                    self.count("scores_without_task")
                elif scores[task] is not None:
                    self.count("scores_same_task")
                else:
                    scores[task] = single(score)
            if scores == [None] * len(self.tasks):
                continue
            s = Shown(self.owners[i["item_id"]], i["item_id"], -1, 0)
            s.ranker, s.ts, s.scores = ranker, ts, scores
            known = [k for k, o in enumerate(r.scores)
                     if o.owner == s.owner and o.ranker == ranker]
            if known:
                self.count("duplicate_scores")
                if r.scores[known[0]].ts <= ts:
                    r.scores[known[0]] = s
            elif (len(r.scores) + 1) * (12 + 4 * len(self.tasks)) > LIST_BYTES:
                self.count("scores_full")
            else:
                self.count("scores_kept")
                r.scores.append(s)

    def item(self, record):
        self.see(record["item_id"])


def check(directory, dump, window, lateness, delay, age_max, *tasks):
    join = Join(int(window), int(lateness), int(delay), int(age_max), tasks)
    events = []
    for rank, topic in enumerate(TOPICS):
        latest = 0
        for offset, line in enumerate(lines(directory, topic)):
            record = json.loads(line)
            latest = max(latest, record["ts"])
            # Of one time and topic the program goes by user; here no two users' records touch.
            events.append((latest, rank, offset, record))
    events.sort(key=lambda e: e[:3])
    apply = [join.item, join.score, join.impressions, join.engagement]
    for latest, rank, _, record in events:
        join.advance(latest)
        apply[rank](record)
    while join.requests:
        join.advance(join.watermark + 3 * join.window + 2 * join.lateness)
    with open(dump, encoding="utf-8") as f:
        found = f.read().splitlines()
    found_counts = {name: int(n) for _, name, n in
                    (line.split() for line in found if line.startswith("count "))}
    found = [line for line in found if not line.startswith("count ")]
    # Requests of one second close in the order in which they were opened, and that of records of
    # one time is the program's own.
    for place, (ours, theirs) in enumerate(zip(sorted(join.out), sorted(found))):
        if ours != theirs:
            sys.exit(f"slate {place}:\n  expected {ours}\n  found    {theirs}")
    if len(join.out) != len(found):
        sys.exit(f"expected {len(join.out)} slates, found {len(found)}")
    for name, n in found_counts.items():
        if join.counts.get(name, 0) != n:
            sys.exit(f"{name}: expected {join.counts.get(name, 0)}, found {n}")
    masked = sum(n for name, n in join.counts.items()
                 if name.startswith("scores_") and name not in ("scores_kept", "scores_same_task"))
    print(f"slates {len(found)} labels {join.counts.get('slate_labels', 0)} masked {masked}")


def make(directory, seed):
    draw = random.Random(int(seed))
    start, out = 1700000000, {topic: [] for topic in TOPICS}

    def put(topic, arrives, record):
        out[topic].append((arrives, len(out[topic]), json.dumps(record, separators=(",", ":"))))

    for i in range(60):
        put("items", start, {"item_id": f"i{i}", "ts": start * 1000})
    # Every name once, alone in its second: records of one second have no order of their own.
    rankers = ["v1"] + [f"w{i}" for i in range(258)]
    for i, name in enumerate(rankers):
        put("ranker_scores", start + i, {
            "request_id": "first", "user_id": "u0", "ts": (start + i) * 1000, "ranker": name,
            "items": [{"item_id": "i0", "scores": {"click": 1}}]})
    for i in range(10):
        put("impressions", start + i, {"request_id": f"first{i}", "user_id": "u0", "item_id": "i0",
                                       "ts": (start + i) * 1000, "surface": f"s{i}"})
    start += 300
    for r in range(1200):
        ts, user = start + r * 3, r % 40
        head = {"request_id": f"r{r}", "user_id": f"u{user}", "ts": ts * 1000}
        slate = draw.sample(range(90), draw.choice([1, 3, 10, 10, 80]))
        surface = draw.choice([{}, {"surface": f"s{draw.randrange(10)}"}])
        shown = [dict({"item_id": f"i{i}"}, **draw.choice(
            [{}, {"position": draw.randrange(12)}, {"position": p, "propensity": 0.25}]))
                 for p, i in enumerate(slate)]
        arrives = ts + draw.choice([0, 0, 0, 1, 20])
        if draw.random() < 0.2:
            for s in shown:
                put("impressions", arrives, dict(head, **surface, **s))
        else:
            put("impressions", arrives, dict(head, items=shown, **surface))
        for _ in range(draw.choice([0, 1, 1, 2, 4])):
            scored = [i for i in slate if draw.random() < 0.9]
            scored += [draw.randrange(120) for _ in range(draw.randrange(4))] + [slate[0]]
            made = ts + draw.choice([0, 0, 0, -5, -40, 3])
            names = draw.choice([["click"], ["click", "like"], ["share", "click"], ["like", "seen"]])
            put("ranker_scores", made + draw.choice([0, 0, 1, 9, 50, 2500]), {
                "request_id": f"r{r}" if draw.random() < 0.97 else f"never{r}", "user_id": f"u{user}",
                "ts": made * 1000, **draw.choice([{"ranker": "v1"}, {"ranker": "v1"},
                                                  {"ranker": draw.choice(rankers)}]),
                "items": [{"item_id": f"i{i}", "scores": {n: draw.uniform(-9, 9) for n in names}}
                          for i in scored]})
        for i in slate:
            while draw.random() < 0.2:
                delay = draw.choice([0, 3, 30, 100, 250, 900, -5])
                e = {"request_id": f"r{r}", "user_id": f"u{user}", "item_id": f"i{i}",
                     "action": draw.choice(["click", "like", "share", "seen"]),
                     "ts": (ts + delay) * 1000}
                if draw.random() < 0.1:
                    del e["request_id"]
                put("engagements", ts + delay + draw.choice([0, 0, 2, 40]), e)
    for topic, records in out.items():
        records.sort()
        with open(os.path.join(directory, topic + ".jsonl"), "w", encoding="ascii") as f:
            f.writelines(text + "\n" for _, _, text in records)


if __name__ == "__main__":
    {"check": check, "make": make}[sys.argv[1]](*sys.argv[2:])
