#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a small stream with one kind of evil in it.

    bad_input_make.py DIR KIND

DIR/impressions.jsonl and DIR/engagements.jsonl: 2,000 requests of five items, a click on each.

    good       nothing else
    hostile    between them, records that are no events; prints "reason count" lines
    doubled    every record twice
    hot        100,000 impressions under one request
    anonymous  100,000 engagements of one user without a request
    waiting    100,000 engagements for a request that never comes
    robot      20,000 open requests of one user, as many engagements without a request
    future     one impression of the year 2099
    features   features and values as large as they may be
"""
import collections
import json
import os
import sys

START, REQUESTS, MANY = 1700000000000, 2000, 100000


def main():
    directory, kind = sys.argv[1:]
    os.makedirs(directory, exist_ok=True)
    shown, clicks, items = [], [], []
    for r in range(REQUESTS):
        ts = START + r * 1000
        shown.append({"request_id": f"r{r}", "user_id": f"u{r % 50}", "ts": ts,
                      "items": [{"item_id": f"i{(r * 7 + k) % 40}", "position": k} for k in range(5)]})
        clicks.append({"request_id": f"r{r}", "user_id": f"u{r % 50}", "item_id": f"i{(r * 7 + 2) % 40}",
                       "action": "click", "ts": ts + 500})
    if kind == "doubled":
        shown, clicks = ([r for r in records for _ in range(2)] for records in (shown, clicks))
    if kind == "hot":
        shown[:0] = [{"request_id": "hot", "user_id": "robot", "item_id": f"i{i % 5000}",
                      "position": i % 30000, "ts": START + i // 100} for i in range(MANY)]
    if kind == "anonymous":
        clicks[:0] = [{"user_id": "robot", "item_id": f"i{i % 40}", "action": "click",
                       "ts": START + i // 100} for i in range(MANY)]
    if kind == "waiting":
        clicks[:0] = [{"request_id": "never", "user_id": "robot", "item_id": f"i{i % 40}",
                       "action": "click", "ts": START + i // 100} for i in range(MANY)]
    if kind == "robot":
        shown[:0] = [{"request_id": f"q{i}", "user_id": "robot", "ts": START,
                      "items": [{"item_id": f"i{k}"} for k in range(10)]} for i in range(20000)]
        clicks[:0] = [{"user_id": "robot", "item_id": "i39", "action": "click", "ts": START + 1}
                      for _ in range(20000)]
    if kind == "future":
        shown.insert(500, dict(shown[500], request_id="future", ts=4090000000000))
    if kind == "features":
        items = [{"item_id": f"i{i}", "ts": START, "features": [1e9, -1e9, 1e-45]} for i in range(40)]
        for i, click in enumerate(clicks):
            click["value"] = [3e38, -3e38, 0, -0.0, 1e-45][i % 5]
        for record in shown:
            record["user_features"] = [1e9, -1e9]
            for item in record["items"]:
                item["propensity"] = 1e-37
    topics = {"impressions": [json.dumps(r).encode() for r in shown],
              "engagements": [json.dumps(r).encode() for r in clicks],
              "items": [json.dumps(r).encode() for r in items]}
    if kind == "hostile":
        hostile(topics, clicks[0], shown[0])
    for topic, lines in topics.items():
        if lines:
            with open(os.path.join(directory, topic + ".jsonl"), "wb") as f:
                f.writelines(line + b"\n" for line in lines)


def hostile(topics, click, impression):
    def with_text(text):  # the text stands for the number 0.125
        return json.dumps(dict(click, value=0.125)).encode().replace(b"0.125", text)

    def with_time(ts):
        return json.dumps(dict(click, ts=ts)).encode()

    def with_id(name, value):
        return json.dumps(dict(click, **{name: value})).encode()

    def with_items(value):
        return json.dumps(dict(impression, items=value)).encode()

    bad = [
        ("too_large", "engagements", with_id("item_id", "x" * (2 << 20))),
        ("too_large", "engagements", with_text(b"[" * 40 + b"]" * 40)),
        ("not_json", "engagements", b"[" * 1000000),
        ("too_large", "impressions", with_items([{"item_id": i} for i in range(4097)])),
        ("not_json", "engagements", with_text(b"NaN")),
        ("not_json", "engagements", with_text(b"Infinity")),
        ("not_json", "engagements", with_text(b"-inf")),
        ("not_json", "engagements", b"\0" * 100),
        ("not_json", "engagements", json.dumps(click).encode().replace(b"click", b"cl\0ck")),
        ("not_json", "engagements", json.dumps(click).encode()[:-9]),
        ("not_json", "engagements", json.dumps(click).encode() * 2),
        ("not_json", "engagements", b'{"user_id":"\\ud800"}'),
        ("not_utf8", "engagements", json.dumps(click).encode().replace(b"click", b"cl\xffck")),
        ("not_utf8", "impressions", json.dumps(impression).encode().replace(b'"u0"', b'"\xc3\x28"')),
        ("not_object", "engagements", b'["click"]'),
        ("not_object", "engagements", b"null"),
        ("missing_field", "engagements", with_id("user_id", None)),
        ("missing_field", "impressions", with_items([{"position": 1}])),
        ("wrong_type", "engagements", with_time("1700000000000")),
        ("wrong_type", "engagements", with_id("user_id", ["u1"])),
        ("bad_id", "engagements", with_id("item_id", "x" * 257)),
        ("bad_id", "engagements", with_id("item_id", "")),
        ("bad_id", "engagements", with_id("user_id", 1.5)),
        ("bad_id", "engagements", with_id("user_id", 1 << 64)),
        ("bad_time", "engagements", with_time(0)),
        ("bad_time", "engagements", with_time(-1)),
        ("bad_time", "engagements", with_time(START // 1000)),
        ("bad_time", "engagements", with_time(START * 1000)),
        ("bad_time", "engagements", with_time(9e18)),
        ("bad_number", "engagements", with_text(b"1e308")),
        ("bad_number", "engagements", with_text(b"-1e309")),
        ("bad_number", "impressions", json.dumps(dict(impression, user_features=[1e10])).encode()),
        ("bad_number", "impressions", with_items([{"item_id": 1, "propensity": 0}])),
        ("empty_list", "impressions", with_items([])),
    ]
    for i, (_, topic, line) in enumerate(bad):
        topics[topic].insert(i * 50, line)
    for reason, n in sorted(collections.Counter(reason for reason, _, _ in bad).items()):
        print(reason, n)


main()
