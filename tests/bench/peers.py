# SPDX-License-Identifier: Apache-2.0
"""The trainer beside PyTorch and TensorFlow Recommenders, on a recorded stream.

    peers.py --peer NAME=PYTHON... [--data DIR] [--json] [--full] [--rounds N] [--batch B]... [--mask]

All sides learn the plain model: a row of 64 for each user and item, a bias for each item, in-batch
softmax (summed) with logQ from how often an item has come so far, Adagrad 0.1 starting at 0.1, rows
drawn from -0.05 to 0.05. They take the same batches of the same stream, each chunk of 10,000
predicted over the whole corpus before it is learned. Our default model stands beside them, and where
the CPU has AMX, both with products in bfloat16 (model.precision).

Each peer has several ways to do the same (dense or sparse gradients, compiled or not); the one that
is fastest over the first 50,000 examples at that batch size, in the better of two tries, is taken.

That is what --full does, with the whole stream. Without it, it is the first 60,000 examples, two rounds
by default, the variants that were fastest when all were tried (SHORT), and recall is of the examples
that are scored on the clock.

Sides run alternately, one at a time, and what counts is CPU time of the whole process, or for us of
the thread that learns: a busy machine takes little of the ratios away. "examples/s" is of learning
alone, in CPU seconds, for all sides; its multiple is of the faster peer in the same round. Both are
medians of the rounds. "all of it" adds all else that a side does: for a peer, which has the stream
in memory as numbers, scoring 1 % of each chunk; for us the same scoring and reading, decompressing,
decoding and joining JSON, twice, for the corpus is known in advance.
Recall is of every fourth example.
"""
import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PROGRAM = os.environ.get("TWOTOWER", str(ROOT / "build/release/twotower"))

VARIANTS = {"torch": ["dense", "sparse", "compiled"], "tfrs": ["legacy", "newer"]}
PLAIN = ["model.type=two_tower", "model.optimizer=adagrad", "model.rate=0.1", "model.l2=0",
         "model.init=0.05", "model.accumulator=0.1", "model.projection=false"]
BF16 = ["model.precision=bf16"]
SHORT_EXAMPLES = 60000
SHORT = {"torch": "dense", "tfrs": "legacy"}


def last_line(text):
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def run(command):
    """The figures that a program prints, or {"failed": why}."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return {"failed": str(error)}
    if done.returncode != 0:
        return {"failed": last_line(done.stderr)}
    return json.loads(last_line(done.stdout))


def peer_run(asked, name, variant, batch, first):
    command = [asked.peer[name], str(HERE / f"peers_{name}.py"), "--stream", str(asked.stream),
               "--batch", str(batch), "--variant", variant, "--first", str(first)]
    return run(command + ["--mask"] * asked.mask)


def ours_run(asked, batch, options, sampling):
    options = options + [f"model.batch={batch}", f"eval.sampling={sampling}"]
    figures = run([PROGRAM, "eval", "--events", str(asked.stream), "--json"]
                  + [x for option in options for x in ("-o", option)])
    return figures | {"version": "twotower", "variant": " ".join(options)}


def variant_choose(asked, name, batch):
    """The fastest of those that work here."""
    fastest = {}
    if not asked.full:
        return SHORT[name]
    for _ in range(2):
        for variant in VARIANTS[name]:
            if fastest.get(variant, 0) is None:
                continue
            figures = peer_run(asked, name, variant, batch, 50000)
            if "failed" in figures:
                print(f"{name}, {variant}: {figures['failed']}", file=sys.stderr)
                fastest[variant] = None
            else:
                took = figures["cpu_seconds_train"]
                fastest[variant] = min(took, fastest.get(variant, took))
    working = [variant for variant in VARIANTS[name] if fastest[variant] is not None]
    return min(working, key=fastest.get, default=None)


def amx():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return "amx_bf16" in info.read()


def measure(asked, batch):
    sides = {}
    for name in asked.peer:
        variant = variant_choose(asked, name, batch)
        if variant:
            sides[name] = lambda n=name, v=variant: peer_run(asked, n, v, batch, 0)
    hits = "false" if not asked.mask else "true"
    plain = PLAIN + [f"model.accidental_hits={hits}"]
    forms = {"ours, plain": plain, "ours, default": []}
    if amx():
        forms |= {"ours, plain, bf16": plain + BF16, "ours, default, bf16": BF16}
    for side, options in forms.items():
        sides[side] = lambda o=options: ours_run(asked, batch, o, 0.01)

    rounds = {side: [] for side in sides}
    for _ in range(asked.rounds):
        for side, once in sides.items():
            figures = once()
            if "failed" in figures:
                raise SystemExit(f"{side}, batch of {batch}: {figures['failed']}")
            rounds[side].append(figures)
    recall = {side: ours_run(asked, batch, options, 0.25)
              for side, options in forms.items()} if asked.full else {}

    def rates(side, seconds):
        return [f["examples"] / f[seconds] for f in rounds[side]]

    def multiples(side, seconds):
        fastest = [max(of_round) for of_round in
                   zip(*(rates(name, seconds) for name in asked.peer if name in sides))]
        return [ours / peer for ours, peer in zip(rates(side, seconds), fastest)]

    rows = []
    for side, figures in rounds.items():
        judged = recall.get(side, figures[0])
        row = {"batch": batch, "side": side, "version": figures[0]["version"],
               "variant": figures[0]["variant"], "rounds": len(figures)}
        for column, seconds in (("", "cpu_seconds_train"), (" all", "cpu_seconds_total")):
            row["examples_per_second" + column] = statistics.median(rates(side, seconds))
            ratio = multiples(side, seconds)
            row["multiple" + column] = statistics.median(ratio) if ratio else None
            row["multiples" + column] = ratio
        rows.append(row | {"recall@10": judged["recall@10"], "recall@100": judged["recall@100"]})
    return rows


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{os.uname().machine}, {os.cpu_count()} cores"


def table_print(rows, head):
    if head:
        print(f"{'batch':>6}  {'side':32} {'examples/s':>10} {'multiple':>9} {'all of it':>10} "
              f"{'multiple':>9} {'recall@10':>10} {'recall@100':>10}")
    for row in rows:
        peer = not row["side"].startswith("ours")
        name = f"{row['version']}, {row['variant']}" if peer else row["side"]
        cells = [f"{row['multiple' + column]:.2f} x" if row["multiples" + column] else "-"
                 for column in ("", " all")]
        print(f"{row['batch']:6}  {name.replace('TensorFlow', 'TF')[:32]:32} "
              f"{row['examples_per_second']:10.0f} {cells[0]:>9} "
              f"{row['examples_per_second all']:10.0f} {cells[1]:>9} "
              f"{row['recall@10']:10.4f} {row['recall@100']:10.4f}", flush=True)


# What a row of ours is called in the list of ratios, and its goal.
STAGES = {"ours, plain": ("trainer, plain model, B={}", ">= 3"),
          "ours, plain, bf16": ("trainer, plain model, bf16, B={}", ">= 5"),
          "ours, default": ("default model vs peers' plain, B={}", ">= 2.5"),
          "ours, default, bf16": ("default model, bf16, vs peers' plain, B={}", ">= 2.5")}


def json_print(rows):
    """Each row of ours beside the faster peer."""
    peers = [row for row in rows if row["side"] not in STAGES]
    fastest = max(peers, key=lambda row: row["examples_per_second"], default=None)
    for row in rows:
        if row["side"] not in STAGES or not fastest:
            continue
        print(json.dumps({
            "stage": STAGES[row["side"]][0].format(row["batch"]),
            "reference": f"{fastest['version']}, {fastest['variant']}", "unit": "examples/CPU s",
            "ours": round(row["examples_per_second"]),
            "theirs": round(fastest["examples_per_second"]), "ratio": round(row["multiple"], 3),
            "goal": STAGES[row["side"]][1], "ratio_all": round(row["multiple all"], 3),
            "peers": {f"{p['version']}, {p['variant']}": round(p["examples_per_second"])
                      for p in peers},
            "rounds": row["rounds"], "recall@100": row["recall@100"]}), flush=True)


def stream_cut(whole, directory):
    """The first engagements and impressions; what there is of items stays whole."""
    for name, lines in (("engagements", SHORT_EXAMPLES), ("impressions", SHORT_EXAMPLES),
                        ("items", 0)):
        source, target = whole / f"{name}.jsonl.zst", directory / f"{name}.jsonl.zst"
        if not source.exists():
            continue
        if not lines:
            target.symlink_to(source.resolve())
            continue
        with subprocess.Popen(["zstd", "-dcq", str(source)], stdout=subprocess.PIPE) as read, \
                subprocess.Popen(["zstd", "-q1", "-o", str(target)], stdin=subprocess.PIPE) as write:
            for line in itertools.islice(read.stdout, lines):
                write.stdin.write(line)
            write.stdin.close()
            read.stdout.close()
    return directory


def peer(text):
    name, _, python = text.partition("=")
    if name not in VARIANTS or not python:
        raise argparse.ArgumentTypeError("torch=PYTHON or tfrs=PYTHON")
    return name, python


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--peer", type=peer, action="append", required=True,
                        help="torch=PYTHON or tfrs=PYTHON, the Python that has it")
    parser.add_argument("--data", type=Path,
                        default=Path(os.environ.get("TWOTOWER_DATA", ROOT / "../shared/data")),
                        help="directory of recorded streams, or a stream itself")
    parser.add_argument("--json", action="store_true", help="one JSON object for each row of ours")
    parser.add_argument("--full", action="store_true", help="the whole stream and all variants")
    parser.add_argument("--rounds", type=int, help="default 2, with --full 3")
    parser.add_argument("--batch", type=int, action="append", help="default 1024 and 4096")
    parser.add_argument("--mask", action="store_true",
                        help="a positive that is there twice in a batch is no negative, on all sides")
    asked = parser.parse_args()
    asked.peer = dict(asked.peer)
    asked.rounds = asked.rounds or (3 if asked.full else 2)
    asked.stream = asked.data if (asked.data / "engagements.jsonl.zst").exists() else asked.data / "ml1m"
    if not asked.stream.is_dir():
        print(f"skip peers: no recorded stream in {asked.stream}")
        return
    if not asked.json:
        print(f"machine: {machine()}; {asked.rounds} rounds, load "
              f"{os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        if not asked.full:
            asked.stream = stream_cut(asked.stream, Path(directory))
        for i, batch in enumerate(asked.batch or [1024, 4096]):
            rows = measure(asked, batch)
            if asked.json:
                json_print(rows)
            else:
                table_print(rows, i == 0)


if __name__ == "__main__":
    main()
