#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a small stream on which everything happens that the event contract has a word for.

    stream_make.py DIR [SEED [REQUESTS [orderly]]]

items, ranker_scores, impressions and engagements as .jsonl, in the order in which they arrive: late
and out of order, twice, without request_id, before what they belong to, for things never shown, and
some that are no events. Times are whole seconds. The same seed writes the same bytes. An orderly
stream arrives in the order of its times, and all of it is events.
"""
import json
import os
import random
import sys


def main():
    directory = sys.argv[1]
    draw = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    requests = int(sys.argv[3]) if len(sys.argv) > 3 else 20000
    start, users, items = 1700000000, 80, 60
    orderly = len(sys.argv) > 4
    out = {"items": [], "ranker_scores": [], "impressions": [], "engagements": []}

    def put(topic, arrives, record):
        text = json.dumps(record, separators=(",", ":"))
        if orderly:
            arrives = record["ts"] // 1000
        elif draw.random() < 0.005:  # no event, in one of the ways of producers
            text = draw.choice([
                text[:len(text) // 2], text + "}", "nonsense", "[1,2]",
                json.dumps({k: v for k, v in record.items() if k != "user_id" and k != "item_id"}),
                json.dumps({k: v for k, v in record.items() if k != "ts"}),
                json.dumps(dict(record, ts="yesterday")), json.dumps(dict(record, user_id="", item_id=""))])
        out[topic].append((arrives, len(out[topic]), text))

    for i in range(items):
        put("items", start, {"item_id": f"i{i}", "ts": start * 1000, "title": f"Item {i}"})
    for r in range(requests):
        user, ts = draw.randrange(users), start + 5 + r * 2 + draw.randrange(3)
        request = f"r{r}" if r % 10 else r  # an id may be a number
        slate = [draw.randrange(items) for _ in range(draw.choice([1, 3, 10]))]
        arrives = ts + (draw.randrange(60) if draw.random() < 0.03 else draw.randrange(4))
        if draw.random() < 0.005:
            arrives += 1700 + draw.randrange(300)
        positioned = draw.random() < 0.8
        shown = [dict({"item_id": f"i{i}"}, **({"position": p} if positioned else {})) for p, i in enumerate(slate)]
        record = {"request_id": request, "user_id": f"u{user}", "ts": ts * 1000}
        if draw.random() < 0.1:  # one record for each item
            for s in shown:
                put("impressions", arrives, dict(record, **s))
        else:
            for _ in range(2 if draw.random() < 0.02 else 1):
                put("impressions", arrives, dict(record, items=shown))
        if draw.random() < 0.9:
            delay = draw.randrange(-8, 30) if draw.random() < 0.95 else draw.randrange(5000)
            put("ranker_scores", ts + max(delay, 0), dict(
                record, ranker="v1", items=[{"item_id": f"i{i}", "scores": {"click": 0.5}} for i in slate]))
        for item in slate:
            if draw.random() > 0.15:
                continue
            delay = int(draw.expovariate(1 / 300)) if draw.random() < 0.9 else draw.randrange(-20, 5000)
            e = {"request_id": request, "user_id": f"u{user}", "item_id": f"i{item}",
                 "action": draw.choice(["click", "like", "share"]), "ts": (ts + delay) * 1000}
            kind = draw.random()
            if kind < 0.10:
                del e["request_id"]
            elif kind < 0.12:
                e["request_id"] = f"nowhere{r}"
            elif kind < 0.15:
                e["item_id"] = f"i{draw.randrange(items)}"
            arrives = ts + delay + (draw.randrange(90) if draw.random() < 0.05 else draw.randrange(3))
            for _ in range(2 if draw.random() < 0.05 else 1):
                put("engagements", arrives, e)
    for topic, records in out.items():
        records.sort()
        with open(os.path.join(directory, topic + ".jsonl"), "w", encoding="ascii") as f:
            f.writelines(text + "\n" for _, _, text in records)


main()
