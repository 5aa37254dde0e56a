#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a stream from which tastes can be learned, with trouble in it.

    robustness_make.py DIR KIND [SEED]

400 users, each of one of eight tastes, and 400 items; a request a second shows ten of them, half to
the user's taste, and those are clicked at. A ranker knows the tastes. Prints what it did.

    clean      nothing else
    poisoned   among them a copy of every 20th record, with one to three numbers at the end of what can
               be written: not a number, infinite, denormal, -0, at the limits of 64 bits
    drowned    the same of every record
    bot        one user whose 100,000 requests show one item and are clicked at, among the others'
"""
import json
import os
import random
import sys

START, REQUESTS, USERS, ITEMS, TASTES, BOTS = 1700000000000, 12000, 400, 400, 8, 100000

# What producers write for numbers, as JSON text. 1e9 and -1e9 are the last that features and scores
# may be, 3.4e38 the last that a value may be.
ENDS = ["NaN", "Infinity", "-Infinity", "1e10", "-1e10", "1e38", "-1e38", "3.4028234e38", "3.5e38", "1e308", "1e309",
        "1e400", "-1e400", "5e-324", "1e-45", "-1e-45", "1e-38", "1e-400", "-0.0", "-0", "0", "1e9", "-1e9", "1e18",
        "9223372036854775807", "-9223372036854775808", "18446744073709551615", "18446744073709551616", "-1", "0.5",
        "2147483647", "2147483648", "1e3"]


def main():
    directory, kind = sys.argv[1:3]
    draw = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    topics = {topic: [] for topic in ("items", "impressions", "ranker_scores", "engagements")}

    def put(topic, record):
        topics[topic].append((record["ts"], len(topics[topic]), record))

    for i in range(ITEMS):
        put("items", {"item_id": f"i{i}", "ts": START, "title": f"Item {i}",
                      "features": [1.0 if i % TASTES == t else 0.0 for t in range(TASTES)]})
    for r in range(REQUESTS):
        user, ts = draw.randrange(USERS), START + 1000 + r * 1000
        taste = user % TASTES
        slate = [draw.randrange(ITEMS // TASTES) * TASTES + (taste if k % 2 else draw.randrange(TASTES))
                 for k in range(10)]
        record = {"request_id": f"r{r}", "user_id": f"u{user}", "ts": ts}
        put("impressions", dict(record, surface="home", user_features=[taste / TASTES, 1.0], items=[
            {"item_id": f"i{i}", "position": p, "propensity": 0.1, "features": [1.0 if i % TASTES == t else 0.0
                                                                                for t in range(TASTES)]}
            for p, i in enumerate(slate)]))
        put("ranker_scores", dict(record, ranker="v1", items=[
            {"item_id": f"i{i}", "scores": {"click": 0.5 if i % TASTES == taste else 0.05}} for i in slate]))
        for i in set(slate):
            if draw.random() < (0.3 if i % TASTES == taste else 0.03):
                put("engagements", dict(record, item_id=f"i{i}", action="click", value=1.0,
                                        ts=ts + 1000 + draw.randrange(20000)))
    if kind in ("poisoned", "drowned"):
        poison(topics, draw, 20 if kind == "poisoned" else 1)
    if kind == "bot":
        for b in range(BOTS):
            record = {"request_id": f"b{b}", "user_id": "bot", "ts": START + 1000 + b * REQUESTS * 1000 // BOTS}
            put("impressions", dict(record, items=[{"item_id": "i7", "position": 0}]))
            put("engagements", dict(record, item_id="i7", action="click", ts=record["ts"] + 100))
    for topic, records in topics.items():
        records.sort(key=lambda r: r[:2])
        with open(os.path.join(directory, topic + ".jsonl"), "w", encoding="ascii") as f:
            f.writelines((r[2] if isinstance(r[2], str) else json.dumps(r[2])) + "\n" for r in records)
    print(" ".join(f"{topic}={len(records)}" for topic, records in topics.items()))


def numbers(record, path=()):
    """Paths to everything in the record that is a number, and to ids, which may be numbers."""
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        if isinstance(value, (dict, list)):
            yield from numbers(value, path + (key,))
        elif not isinstance(value, str) or str(key).endswith("_id"):
            yield path + (key,)


def poison(topics, draw, every):
    for records in topics.values():
        for ts, _, record in draw.sample(records, len(records) // every):
            copy = json.loads(json.dumps(record))
            paths = list(numbers(copy))
            texts = {}
            for path in draw.sample(paths, min(len(paths), draw.randrange(1, 4))):
                at = copy
                for key in path[:-1]:
                    at = at[key]
                mark = f"@{len(texts)}@"
                texts[mark] = draw.choice(ENDS)
                at[path[-1]] = mark
            text = json.dumps(copy)
            for mark, number in texts.items():
                text = text.replace(f'"{mark}"', number)
            records.append((ts, len(records), text))


main()
