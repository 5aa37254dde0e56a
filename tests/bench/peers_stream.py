# SPDX-License-Identifier: Apache-2.0
"""What the learners of peers.py have in common: the stream, logQ, the protocol and the clock.

A learner has
    learn(users, items, log_q)   one step on a batch: rows of users and items, int64[B], and
                                 log of how often each item is sampled, float32[B]
    scores(users)                [n][items] over the whole corpus, with the parameters as they are
"""
import argparse
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np

DIM = 64
RATE = 0.1
ACCUMULATOR = 0.1
INIT = 0.05
CHUNK = 10000
# Every 100th example is scored on the clock, as a daemon would that watches itself; every fourth is
# scored for recall, or its standard error would be 0.006.
WATCHED, JUDGED = 100, 4
HALF_LIFE = 50000


class Stream:
    """Users and items of a stream's engagements, as rows, in time order."""

    def __init__(self, directory):
        users, items = {}, {}
        rows = []
        with subprocess.Popen(["zstd", "-dcq", str(directory / "engagements.jsonl.zst")],
                              stdout=subprocess.PIPE) as run:
            for line in run.stdout:
                event = json.loads(line)
                rows.append((users.setdefault(event["user_id"], len(users)),
                             items.setdefault(event["item_id"], len(items))))
        if not rows:
            raise SystemExit(f"{directory}: no engagements")
        self.users, self.items = np.array(rows, dtype=np.int64).T.copy()
        self.n_users, self.n_items = len(users), len(items)


class Frequency:
    """Share of each item among the examples so far, the older ones counting less.

    Weights grow instead of counts shrinking, so that a batch touches its own items only.
    """

    def __init__(self, n_items):
        self.counts = np.zeros(n_items)
        self.seen, self.total = 0, 0.0

    def log_q(self, items):
        weight = 2.0 ** (self.seen / HALF_LIFE)
        np.add.at(self.counts, items, weight)
        self.seen += len(items)
        self.total += weight * len(items)
        if weight > 1e100:
            self.counts /= weight
            self.total /= weight
            self.seen = 0
        return np.log(self.counts[items] / self.total).astype(np.float32)


def ranks(scores, targets):
    """Ties count at the middle."""
    own = scores[np.arange(len(targets)), targets][:, None]
    return (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2


def prequential(learner, stream, batch):
    """One pass, each chunk predicted before it is learned; CPU seconds of this whole process."""
    frequency = Frequency(stream.n_items)
    n = len(stream.users)
    judged = []
    learning = scoring = 0.0
    for start in range(0, n, CHUNK):
        stop = min(start + CHUNK, n)
        index = np.arange(start, stop)
        began = time.process_time()
        watched = index[index % WATCHED == 0]
        judged.append(ranks(learner.scores(stream.users[watched]), stream.items[watched]))
        scoring += time.process_time() - began

        others = index[(index % JUDGED == 0) & (index % WATCHED != 0)]
        judged.append(ranks(learner.scores(stream.users[others]), stream.items[others]))

        began = time.process_time()
        for at in range(start, stop, batch):
            end = min(at + batch, stop)
            items = stream.items[at:end]
            learner.learn(stream.users[at:end], items, frequency.log_q(items))
        learning += time.process_time() - began
    rank = np.concatenate(judged)
    if not math.isfinite(float(rank.sum())):
        raise SystemExit("scores are not finite")
    return {"examples": n, "scored": len(rank), "cpu_seconds_train": learning,
            "cpu_seconds_total": learning + scoring, "recall@10": float((rank < 10).mean()),
            "recall@100": float((rank < 100).mean())}


def main(version, learners):
    """learners: name of the variant -> class, made with (n_users, n_items, mask, seed)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--mask", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="only so many examples; 0: all")
    parser.add_argument("--variant", choices=list(learners), required=True)
    asked = parser.parse_args()
    stream = Stream(asked.stream)
    if asked.first:
        stream.users, stream.items = stream.users[:asked.first], stream.items[:asked.first]
    learner = learners[asked.variant](stream.n_users, stream.n_items, asked.mask, asked.seed)
    learner.warm_up(stream.users[:asked.batch], stream.items[:asked.batch])
    figures = prequential(learner, stream, asked.batch)
    print(json.dumps({"version": version, "variant": asked.variant, **figures}))
