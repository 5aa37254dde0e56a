# SPDX-License-Identifier: Apache-2.0
"""The trainer beside the models of gauravchak/two_tower_models, in PyTorch, side by side in one run.

    seed_models.py --torch PYTHON [--json] [--rounds N] [--batch B]

Theirs are written anew (seed_models_torch.py) and run as they are there: that is the reference. Two
tuned forms stand beside it, one that takes the same steps and one with sparse gradients. Ours is
`twotower eval` over a stream made for this, all of it engagements, by the thread that learns: reading
and joining are not counted, as theirs draws its batches in memory. CPU seconds, one thread each, in
turns; medians of the rounds. Width 64, 8 features each, the same batch.

    base        1,000,000 users, 200,000 items, both towers with features; ours: model.type = two_tower
    history     300 users, 1,024 items, which is the size of the tables in their training script; ours:
                two_tower with its attention over the history, which is one layer of four heads with
                the residual
    3 layers    the same against our model with the same three layers of four heads, positions and
                neither residual nor norm (model.type = recipe, without features, negatives and repeats)

What else differs: our tables learn by Adam in the rows that a batch touches, theirs in all rows; ours
makes rows for new ids while it learns, and has a bias for each item. A history of ours is read from the
stream, so the first of each user are shorter ("filled" says how full they are); it ends at 64 events.
Beside their 128 ours is taken to be as slow as a straight line through what 32 and 64 events take makes
it, which is what one layer that only the newest event asks costs; for three layers a line is too little,
and they are compared at 64.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = os.environ.get("TWOTOWER", str(ROOT / "build/release/twotower"))
FEATURES = 8

BASE = {"users": 1000000, "items": 200000, "examples": 150000}
HISTORY = {"users": 300, "items": 1024, "examples": 60000}

ADAM = ["model.dim=64", "model.optimizer=adam", "model.dense_optimizer=adam", "model.rate=0.001",
        "model.dense_rate=0.001", "model.l2=0", "eval.sampling=0.001"]
TWO_TOWER = ADAM + ["model.type=two_tower", f"model.user_features={FEATURES}",
                    f"model.item_features={FEATURES}", "model.hidden=256", "model.logq=false",
                    "model.accidental_hits=false"]
NEWEST = TWO_TOWER + ["model.history_encoder=attention"]
LAYERS = ADAM + ["model.type=recipe", "model.correction=none", "model.uniform_negatives=0",
                 "model.repeat=0", "model.attention=3", "model.attention_heads=4",
                 "model.attention_positions=seed", "model.attention_residual=false",
                 "model.attention_norm=false", "model.attention_gaps=false"]


class Lines:
    """A compressed file of JSON lines."""

    def __init__(self, path):
        self.run = subprocess.Popen(["zstd", "-q1", "-o", str(path)], stdin=subprocess.PIPE)

    def put(self, record):
        self.run.stdin.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def close(self):
        self.run.stdin.close()
        if self.run.wait() != 0:
            raise SystemExit("zstd failed")


def stream_make(directory, users, items, examples):
    """Impressions of one item each, everyone an engagement, users and items drawn evenly."""
    draw = random.Random(1)

    def features():
        return [round(draw.random(), 3) for _ in range(FEATURES)]

    directory.mkdir()
    catalogue = Lines(directory / "items.jsonl.zst")
    impressions = Lines(directory / "impressions.jsonl.zst")
    engagements = Lines(directory / "engagements.jsonl.zst")
    start = 1700000000000
    of_user = [features() for _ in range(1000)]
    shown = set()
    for i in range(examples):
        user, item, ts = draw.randrange(users), draw.randrange(items), start + 1000 * i
        about = {"request_id": str(i), "user_id": f"u{user}"}
        if item not in shown:
            shown.add(item)
            catalogue.put({"item_id": f"i{item}", "ts": ts, "features": features()})
        impressions.put(about | {"ts": ts, "user_features": of_user[user % 1000],
                                 "items": [{"item_id": f"i{item}"}]})
        engagements.put(about | {"ts": ts + 100, "item_id": f"i{item}", "action": "click"})
    for lines in (catalogue, impressions, engagements):
        lines.close()
    return directory


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]}: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def ours_run(stream, options):
    figures = run([PROGRAM, "eval", "--events", str(stream), "--json"]
                  + [x for option in options for x in ("-o", option)])
    return figures["examples"] / figures["cpu_seconds_train"]


def theirs_run(asked, shape, length):
    figures = run([asked.torch, str(HERE / "seed_models_torch.py"), "--users", str(shape["users"]),
                   "--items", str(shape["items"]), "--length", str(length), "--batch",
                   str(asked.batch)])
    return figures["version"], figures["examples_per_second"]


def filled(shape, length):
    """How full a history is on average when each user comes equally often."""
    each = shape["examples"] // shape["users"]
    return sum(min(i, length) for i in range(each)) / (each * length)


def row_print(asked, row):
    if asked.json:
        print(json.dumps(row), flush=True)
    else:
        goal = f"   goal {row['goal']}" if "goal" in row else ""
        print(f"{row['stage']:46} {row['ours']:9.0f} {row['theirs']:9.0f} {row['ratio']:8.1f} x "
              f"{row['ratio_fused']:8.1f} x {row['ratio_sparse']:8.1f} x{goal}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--torch", required=True, help="the Python that has PyTorch")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=512)
    asked = parser.parse_args()

    with tempfile.TemporaryDirectory() as directory:
        base = stream_make(Path(directory) / "base", **BASE)
        history = stream_make(Path(directory) / "history", **HISTORY)
        ours, theirs, version = {}, {}, ""
        batch = [f"model.batch={asked.batch}"]
        for _ in range(asked.rounds):
            for length, shape in ((0, BASE), (20, HISTORY), (64, HISTORY), (128, HISTORY)):
                version, rates = theirs_run(asked, shape, length)
                theirs.setdefault(length, []).append(rates)
                if length == 0:
                    ours.setdefault("base", []).append(ours_run(base, TWO_TOWER + batch))
                for reads, after in ((20, 20), (32, 64), (64, 128)):
                    if after != length:
                        continue
                    read = batch + [f"model.history={reads}"]
                    ours.setdefault(f"newest {reads}", []).append(ours_run(history, NEWEST + read))
                    if reads != 32:
                        ours.setdefault(f"layers {reads}", []).append(
                            ours_run(history, LAYERS + read))

    def extrapolated():
        for at32, at64 in zip(ours["newest 32"], ours["newest 64"]):
            yield 1 / (1 / at64 + (1 / at64 - 1 / at32) * 64 / 32)

    rows = [("seed base, 1M users x 200k items", 0, ours["base"], ">= 100", {}),
            ("seed history of 20", 20, ours["newest 20"], ">= 15", {"read": 20}),
            ("seed history of 128, ours drawn out from 64", 128, list(extrapolated()), ">= 15",
             {"read": 64}),
            ("seed history of 64", 64, ours["newest 64"], None, {"read": 64}),
            ("seed history of 20, the same 3 layers", 20, ours["layers 20"], None, {"read": 20}),
            ("seed history of 64, the same 3 layers", 64, ours["layers 64"], None, {"read": 64})]
    if not asked.json:
        print(f"{version}, batch {asked.batch}, examples per CPU second; theirs as it is, then ratios "
              "to it and to its tuned forms")
        print(f"{'':46} {'ours':>9} {'theirs':>9} {'seed':>10} {'fused':>10} {'sparse':>10}")
    for stage, length, rates, goal, more in rows:
        def ratio(variant, rates=rates, length=length):
            return statistics.median(mine / of_round[variant]
                                     for mine, of_round in zip(rates, theirs[length]))
        row = {"stage": f"{stage}, B={asked.batch}", "reference": f"two_tower_models, {version}",
               "unit": "examples/CPU s", "ours": round(statistics.median(rates)),
               "theirs": round(statistics.median(r["seed"] for r in theirs[length])),
               "ratio": round(ratio("seed"), 2), "ratio_fused": round(ratio("fused"), 2),
               "ratio_sparse": round(ratio("sparse"), 2)}
        if goal:
            row["goal"] = goal
        if "read" in more:
            row["filled"] = round(filled(HISTORY, more["read"]), 3)
        row_print(asked, row)


if __name__ == "__main__":
    sys.exit(main())
