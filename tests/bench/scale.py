#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a million events a second and a billion ids need, from what one run of the benchmarks measured.

    tests/bench/scale.py [FILE.json] [--into deploy/scale.md]

FILE.json is what `tests/run bench` wrote, by default build/bench/latest.json. Prints Markdown: what was
measured, and what follows from it, each line with its derivation. --into puts it between the two lines of
that file that begin with <!-- figures. A figure that FILE.json lacks is named and so is all that needs it.
"""
import argparse
import json
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# What is asked for.
EVENTS = 1e6  # a second
USERS, ITEMS = 900e6, 100e6
# What is assumed of it and of the machines; whoever has others changes them here.
HISTORY = 20  # engagements of a user that are kept, on average
WINDOW_S = 1800  # join.window
BUSY = 0.5  # share of a thread's time that is planned for
MEMORY, FILLED = 512 * 2**30, 0.8  # bytes of a machine, share that is planned for
ROUND_S = 10  # between two exchanges of items
DIM = 64


class Missing(Exception):
    pass


class Figures:
    def __init__(self, run):
        self.all = run["figures"]

    def one(self, program, stage, key="ours"):
        for figure in self.all:
            if figure["program"] == program and re.search(stage, figure["stage"]) and key in figure:
                return figure[key]
        raise Missing(f"`bench {program}`, {re.sub(r'[^A-Za-z0-9=, ]', '', stage)}")


def touched(draws, ids):
    """Distinct ids among so many draws by Zipf's law, exponent 1: the sum of 1 - exp(-draws p)."""
    harmonic = math.log(ids) + 0.5772
    total, low = 0.0, 1.0
    while low < ids:  # ranks in steps of 1 %
        high = min(low * 1.01 + 1, ids)
        total += (high - low) * -math.expm1(-draws / (harmonic * (low + high) / 2))
        low = high
    return total


def bytes_shown(n):
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.3g} {unit}" if n < 1000 else f"{n:,.0f} {unit}"
        n /= 1000


def measured(f):
    """(name, text of the value, where it is from); raises nothing."""
    rows = [
        ("read a record from a file", "ns per event", ("stages", "^read$")),
        ("decode", "ns per event", ("stages", "^decode$")),
        ("order and cut slices", "ns per event", ("stages", "^cut$")),
        ("join", "ns per event", ("stages", "^join$")),
        ("examples per event", "", ("stages", "^trainer", "examples_per_event")),
        ("trainer, small tables", "examples per CPU-second", ("stages", "^trainer")),
        ("a step in tables of 10 million rows, times one of 10,000", "", ("tables", r"^step, \d+ items and users, with",
                                                                         "ratio")),
        ("memory of an item", "bytes", ("tables", "^memory of an item")),
        ("memory of a user without history", "bytes", ("tables", "^memory of a user")),
        ("id, row of the id table, slot", "bytes", ("idspace", "memory of a row")),
        ("of what lookups find, in a cache of 1 % of the ids", "", ("idspace", "cache of 1 %")),
        ("ids seen twice that are admitted, at 20 million", "", ("idspace", "by the filter", "ratio")),
    ]
    for name, unit, key in rows:
        try:
            value = f.one(*key)
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            yield name, f"{text} {unit}".strip(), f"`bench {key[0]}`"
        except Missing:
            yield name, "not in this run", f"`bench {key[0]}`"


class Plan:
    """Each method gives (what, value, derivation); Missing says which figure it lacks. In the order of the page."""

    def __init__(self, f):
        self.f = f

    def examples(self):
        return EVENTS * self.f.one("stages", "^trainer", "examples_per_event")

    def ingest_ns(self):
        return sum(self.f.one("stages", f"^{stage}$") for stage in ("read", "decode", "cut", "join"))

    def ingest_cores(self):
        return EVENTS * self.ingest_ns() / 1e9

    def trainer_rate(self):
        return self.f.one("stages", "^trainer") / self.f.one("tables", r"^step, \d+ items and users, with", "ratio")

    def trainer_cores(self):
        return self.examples() / self.trainer_rate()

    def processes(self):
        return math.ceil(max(self.trainer_cores(), self.ingest_cores()) / BUSY)

    def user_bytes(self):
        # A head, and entries of 16 bytes in blocks that are on average three quarters full.
        return self.f.one("tables", "^memory of a user") + 8 + 16 * HISTORY / 0.75

    def item_bytes(self):
        return self.f.one("tables", "^memory of an item")

    def process_bytes(self):
        return USERS / self.processes() * self.user_bytes() + ITEMS * self.item_bytes()

    def machines(self):
        each = math.floor(MEMORY * FILLED / self.process_bytes())
        if each < 1:
            raise Missing("a machine with more memory")
        return math.ceil(self.processes() / each)

    def lines(self):
        n = self.processes
        yield "CPU for reading, decoding, ordering, joining", lambda: f"{self.ingest_cores():.2g} cores", \
            lambda: f"{EVENTS:,.0f}/s x {self.ingest_ns():.0f} ns"
        yield "CPU for learning", lambda: f"{self.trainer_cores():.2g} cores", \
            lambda: f"{self.examples():,.0f} examples/s / {self.trainer_rate():,.0f} a core in tables of 10 million"
        yield "processes, one trainer thread each", lambda: f"{n()}", \
            lambda: f"the larger of both at {BUSY:.0%} of a thread"
        yield "cores", lambda: f"{3 * n()}", lambda: "three threads a process: ingest, trainer, writer"
        yield "memory of all users", lambda: bytes_shown(USERS * self.user_bytes()), \
            lambda: f"{USERS / 1e6:.0f} M x {self.user_bytes():.0f} bytes, {HISTORY} engagements of 16 bytes among them"
        yield "memory of all items, once", lambda: bytes_shown(ITEMS * self.item_bytes()), \
            lambda: f"{ITEMS / 1e6:.0f} M x {self.item_bytes():.0f} bytes"
        yield "memory of a process", lambda: bytes_shown(self.process_bytes()), \
            lambda: f"users / {n()} + all items, for each needs any item"
        yield "machines of 512 GiB", lambda: f"{self.machines()}", \
            lambda: f"as many processes as fit in {FILLED:.0%} of it; standbys not counted"
        yield "requests that wait in the join", lambda: f"{EVENTS / n() * WINDOW_S / 1e6:.0f} M a process", \
            lambda: f"at most one a record for {WINDOW_S // 60} min; `join.max_bytes` bounds it"
        yield "network in, of all", lambda: bytes_shown(EVENTS * self.record()) + "/s", \
            lambda: f"{self.record():.0f} bytes a record (engagements of `bench decode`), before compression"
        yield "checkpoint, bytes a process", lambda: bytes_shown(self.process_bytes()), lambda: "all columns, each time"
        yield "its time at 2 GB/s", lambda: f"{self.process_bytes() / 2e9:.0f} s", \
            lambda: "so `checkpoint.interval` of ten minutes; the default of 30 s is for one process of a few GB"
        yield "read again after a crash", lambda: f"{self.replay_s():.0f} s", \
            lambda: "ten minutes of events, at the trainer's full speed instead of the planned share"
        yield "restart in all", lambda: f"{1.5 * self.process_bytes() / 2e9 + self.replay_s():.0f} s", \
            lambda: "1.5 times reading the checkpoint at 2 GB/s, which is the goal of `bench recovery`, then that"
        yield "item rows a process touches in a round", lambda: f"{self.touched_one() / 1e6:.2g} M", \
            lambda: f"{ROUND_S} s x {self.examples() / n():,.0f} examples/s x {1 + HISTORY} items " \
            "(target and history), distinct by Zipf's law"
        yield "what it sends", lambda: bytes_shown(self.touched_one() * self.delta() / ROUND_S) + "/s", \
            lambda: f"vector and context in 16 bits, id, sums: {self.delta()} bytes a row"
        yield "what it receives", lambda: bytes_shown(self.touched_all() * self.delta() / ROUND_S) + "/s", \
            lambda: f"{self.touched_all() / 1e6:.2g} M rows touched by all"
        yield "the same, targets only", lambda: bytes_shown(
            touched(self.examples() * ROUND_S, ITEMS) * self.delta() / ROUND_S) + "/s", \
            lambda: "history's part learned at the owner, or dropped: not decided, its cost in recall is not known"
        yield "snapshot", lambda: bytes_shown(USERS * 551 + ITEMS * 690), \
            lambda: "551 bytes a user, 690 an item (a run of the built-in stream, manifest), " \
            f"{(USERS * 551 / n() + ITEMS * 690 / n()) / 2e9:.0f} s at 2 GB/s when each process writes its part"

    def record(self):
        return self.f.one("decode", "engagements", "bytes")

    def replay_s(self):
        return 600 * max(self.trainer_cores(), self.ingest_cores()) / self.processes()

    def delta(self):
        return 2 * 2 * DIM + 8 + 8

    def touched_one(self):
        return touched(self.examples() / self.processes() * ROUND_S * (1 + HISTORY), ITEMS)

    def touched_all(self):
        return touched(self.examples() * ROUND_S * (1 + HISTORY), ITEMS)


def page(run):
    f = Figures(run)
    m = run["machine"]
    yield f"Measured on {run['date'][:10]} at commit {run['commit']}: {m['cores']} cores of {m['cpu']}, {m['blas']}, " \
        f"kernels {m['kernels']}, load before {m['load_before'][0]}."
    yield ""
    yield "| measured | | by |"
    yield "| --- | --- | --- |"
    for name, value, by in measured(f):
        yield f"| {name} | {value} | {by} |"
    yield ""
    yield f"| {EVENTS / 1e6:.0f} M events/s, {USERS / 1e6:.0f} M users, {ITEMS / 1e6:.0f} M items | | because |"
    yield "| --- | --- | --- |"
    for what, value, why in Plan(f).lines():
        try:
            yield f"| {what} | {value()} | {why()} |"
        except Missing as missing:
            yield f"| {what} | not known | this run has no {missing} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default=ROOT / "build/bench/latest.json")
    parser.add_argument("--into", metavar="PAGE.md")
    options = parser.parse_args()
    text = "\n".join(page(json.loads(pathlib.Path(options.file).read_text())))
    if not options.into:
        print(text)
        return 0
    path = pathlib.Path(options.into)
    parts = re.split(r"(?m)^(<!-- figures.*-->)$", path.read_text())
    if len(parts) != 5:
        print(f"scale.py: {path} has not two lines that begin with <!-- figures", file=sys.stderr)
        return 1
    parts[2] = f"\n\n{text}\n\n"
    path.write_text("".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
