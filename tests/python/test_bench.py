# SPDX-License-Identifier: Apache-2.0
"""tests/bench/run.py on benchmarks that are made up here: what it collects, what it says of one that fails,
hangs or prints rubbish, and what it calls worse; and tests/bench/scale.py on figures that are made up.

They lie in a tree of their own, with a copy of the runner, as the real ones do.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

RUNNER = pathlib.Path(__file__).resolve().parent.parent / "bench/run.py"
DOT = {"stage": "dot", "unit": "ns per float", "ours": 2.0, "reference": "plain", "theirs": 8.0, "ratio": 4.0,
       "goal": ">= 1"}
RATE = {"stage": "learn", "unit": "examples per CPU-second", "ours": 200000, "reference": "sgemm", "theirs": 400000,
        "ratio": 0.5}
START = {"stage": "start", "unit": "s", "ours": 3, "reference": "reading", "theirs": 2, "ratio": 1.5, "goal": "<= 1.4",
         "rounds": 5}


class Tree:
    def __init__(self, directory):
        self.root = pathlib.Path(directory)
        self.bench = self.root / "tests/bench"
        self.built = self.root / "build/release/tests"
        self.bench.mkdir(parents=True)
        self.built.mkdir(parents=True)
        shutil.copy(RUNNER, self.bench)

    def script(self, name, body, options="--json"):
        (self.bench / f"{name}.sh").write_text(f"# {options}\n{body}\n")

    def says(self, name, *figures):
        self.script(name, "\n".join(f"echo '{json.dumps(figure)}'" for figure in figures))

    def program(self, name, body):
        (self.bench / f"bench_{name}.c").write_text('// "--json"\n')
        (self.built / f"bench_{name}").write_text(f"#!/bin/bash\n{body}\n")
        (self.built / f"bench_{name}").chmod(0o755)

    def run(self, *arguments):
        return subprocess.run([sys.executable, self.bench / "run.py", *arguments], cwd=self.root, timeout=60,
                              env=os.environ | {"TWOTOWER": "/bin/true"}, capture_output=True, text=True)

    def latest(self):
        return json.loads((self.root / "build/bench/latest.json").read_text())


def expect(condition, why):
    if not condition:
        raise AssertionError(why)


def figures_of_scripts_and_programs_become_one_file_and_one_table(tree):
    tree.says("zebra", START)
    tree.program("kernels", f"[ \"$*\" = --json ] && echo '{json.dumps(DOT)}'")
    tree.script("stages", f"bench_stages=1; echo '{json.dumps(RATE)}'")
    tree.program("stages", "echo its script runs it")
    done = tree.run()
    expect(done.returncode == 0, done.stdout + done.stderr)
    run = tree.latest()
    expect([f["program"] for f in run["figures"]] == ["stages", "kernels", "zebra"], "order")
    expect(run["figures"][2] == START | {"program": "zebra"}, "extra keys are kept")
    expect(run["machine"]["cores"] >= 1 and run["machine"]["cpu"] and run["date"], "machine")
    expect(set(run["machine"]) >= {"memory_gib", "kernel", "flags", "blas", "compiler", "load_before"}, "machine")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("dot", "learn", "start"))]
    expect(len(lines) == 3 and "200,000" in lines[0] and lines[2].endswith("<= 1.4, missed"), done.stdout)


def only_the_named_are_run(tree):
    tree.says("one", DOT)
    tree.says("two", START)
    expect(tree.run("two").returncode == 0, "status")
    expect([f["program"] for f in tree.latest()["figures"]] == ["two"], "figures")
    expect(tree.run("three").returncode == 64, "a name that is not there")


def one_that_fails_is_named_with_its_last_words_and_the_others_go_on(tree):
    tree.script("bad", "echo 'no space left' >&2; exit 3")
    tree.says("good", DOT)
    (tree.bench / "bench_absent.c").write_text('// "--json"\n')
    done = tree.run()
    expect(done.returncode == 1, "status")
    expect("FAIL bad: ended with status 3: no space left\n" in done.stdout, done.stdout)
    expect("FAIL absent: " in done.stdout and "is not built" in done.stdout, done.stdout)
    expect("ok good 1 figures" in done.stdout, done.stdout)
    expect("Failed: bad (ended with status 3" in tree.run("--markdown", "build/bench/latest.json").stdout, "markdown")


def one_that_hangs_is_cut_by_its_limit_with_what_it_started(tree):
    tree.script("slow", "sleep 54321 & echo $! >pid; wait")
    tree.says("good", DOT)
    begun = time.monotonic()
    done = tree.run("--limit", "1")
    expect(time.monotonic() - begun < 20, "it was not cut")
    expect(done.returncode == 1 and "FAIL slow: not done in 1 s" in done.stdout, done.stdout)
    expect("ok good" in done.stdout, done.stdout)
    pid = (tree.root / "pid").read_text().strip()
    for _ in range(100):
        if not pathlib.Path(f"/proc/{pid}").exists() or " Z " in pathlib.Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("what it started is still there")


def one_that_prints_rubbish_has_failed(tree):
    rubbish = {"text": "echo 2.1 ns", "nan": 'echo \'{"stage":"a","unit":"s","ours":NaN}\'',
               "bare": 'echo \'{"stage":"a","unit":"s"}\'', "unitless": 'echo \'{"stage":"a","ours":1}\'',
               "string": 'echo \'{"stage":"a","unit":"s","ours":"1"}\'', "list": "echo [1]", "silent": ":",
               "twice": f"echo '{json.dumps(DOT)}'; echo '{json.dumps(DOT)}'", "binary": "printf '\\377\\376\\n'"}
    for name, body in rubbish.items():
        tree.script(name, body)
    done = tree.run()
    expect(done.returncode == 1, "status")
    for name in rubbish:
        expect(f"FAIL {name}: " in done.stdout, f"{name}: {done.stdout}")


def what_cannot_be_measured_here_is_skipped_with_its_reason(tree):
    tree.script("peer", "echo 'skip peer: no PyTorch'")
    tree.script("half", f"echo 'skip half: no faiss'; echo '{json.dumps(DOT)}'")
    tree.script("people", "touch ran; echo 3 ns", options="for people")
    done = tree.run()
    expect(done.returncode == 0, done.stdout + done.stderr)
    expect("skip peer: no PyTorch\n" in done.stdout, done.stdout)
    expect("ok half 1 figures" in done.stdout and "no faiss" in done.stdout, done.stdout)
    expect("skip people: no figures" in done.stdout and not (tree.root / "ran").exists(), done.stdout)


def what_became_worse_by_more_than_a_tenth_is_marked(tree):
    tree.says("a", DOT, RATE, START)
    tree.run("--output", "old.json")
    cases = [  # changed figures, which of them is worse
        ([DOT, RATE, START], None),
        ([DOT | {"ours": 2.19, "ratio": 3.61}, RATE | {"ours": 181000, "ratio": 0.46},
          START | {"ours": 3.2, "ratio": 1.64}], None),
        ([DOT | {"ours": 1, "ratio": 9}, RATE | {"ours": 900000}, START | {"ours": 1, "ratio": 0.5}], None),
        ([DOT | {"ours": 2.3}, RATE, START], "dot (a): ours 2 -> 2.3 ns per float, worse by 15 %"),
        ([DOT | {"ratio": 3.5}, RATE, START], "dot (a): ratio 4 -> 3.5, worse by 12 %"),
        ([DOT, RATE | {"ours": 170000}, START], "learn (a): ours 200,000 -> 170,000"),
        ([DOT, RATE, START | {"ratio": 1.7}], "start (a): ratio 1.5 -> 1.7, worse by 13 %"),
        ([DOT, START], "learn (a): it is missing"),
    ]
    for figures, worse in cases:
        tree.says("a", *figures)
        done = tree.run("--compare", "old.json")
        marked = [line for line in done.stdout.splitlines() if line.startswith("FAIL worse: ")]
        expect(done.returncode == (1 if worse else 0), f"{worse}: {done.stdout}{done.stderr}")
        expect(len(marked) == (1 if worse else 0), f"{worse}: {marked}")
        expect(not worse or worse in marked[0], f"{worse}: {marked}")
    tree.says("b", DOT)
    expect(tree.run("b", "--compare", "old.json").returncode == 0, "what was not run is not missing")
    (tree.root / "old.json").write_text("{}")
    expect(tree.run("--compare", "old.json").returncode not in (0, 64), "a file that is none")


def markdown_is_made_of_the_file_alone(tree):
    tree.says("a", DOT, RATE | {"detail": True}, START | {"stage": "start | warm"})
    tree.run("--output", "figures.json")
    tree.script("a", "exit 1")
    done = tree.run("--markdown", "figures.json")
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    expect(done.returncode == 0 and len(rows) == 4, done.stdout)
    expect(rows[2] == "| dot | 2 ns per float | 8 (plain) | 4 | >= 1 | a |", rows[2])
    expect(rows[3] == "| start \\| warm | 3 s | 2 (reading) | 1.5 | <= 1.4, missed | a |", rows[3])


def the_plan_follows_from_the_figures_and_names_what_is_missing(tree):
    shutil.copy(RUNNER.parent / "scale.py", tree.bench)
    figures = [{"program": "stages", "stage": stage, "unit": "ns per event", "ours": 250}
               for stage in ("read", "decode", "cut", "join")]
    figures += [{"program": "stages", "stage": "trainer, d = 64", "unit": "examples per CPU-second", "ours": 200000,
                 "examples_per_event": 0.5},
                {"program": "tables", "stage": "step, 10000000 items and users, with more distinct rows", "unit": "us", "ours": 1, "ratio": 2},
                {"program": "tables", "stage": "memory of an item, 10 rows", "unit": "bytes per row", "ours": 600}]
    run = {"date": "2026-11-22", "commit": "abc", "figures": figures,
           "machine": {"cores": 2, "cpu": "C", "blas": "B", "kernels": "K", "load_before": [0]}}
    (tree.root / "figures.json").write_text(json.dumps(run))
    (tree.root / "page.md").write_text("above\n<!-- figures -->\nold\n<!-- figures end -->\nbelow\n")
    command = [sys.executable, tree.bench / "scale.py", tree.root / "figures.json"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    rows = {cells[1].strip(): cells[2].strip() for line in said.splitlines() if len(cells := line.split("|")) == 5}
    expect(rows["CPU for reading, decoding, ordering, joining"] == "1 cores", said)
    expect(rows["CPU for learning"] == "5 cores" and rows["processes, one trainer thread each"] == "10", said)
    expect(rows["memory of all items, once"] == "60 GB" and rows["memory of all users"] == "not known", said)
    expect("this run has no `bench tables`, memory of a user" in said, said)
    for _ in range(2):
        expect(subprocess.run([*command, "--into", tree.root / "page.md"]).returncode == 0, "status")
        page = (tree.root / "page.md").read_text()
        expect(page == f"above\n<!-- figures -->\n\n{said.strip()}\n\n<!-- figures end -->\nbelow\n", page)


failed = 0
for test in (figures_of_scripts_and_programs_become_one_file_and_one_table, only_the_named_are_run,
             one_that_fails_is_named_with_its_last_words_and_the_others_go_on,
             one_that_hangs_is_cut_by_its_limit_with_what_it_started, one_that_prints_rubbish_has_failed,
             what_cannot_be_measured_here_is_skipped_with_its_reason,
             what_became_worse_by_more_than_a_tenth_is_marked, markdown_is_made_of_the_file_alone,
             the_plan_follows_from_the_figures_and_names_what_is_missing):
    with tempfile.TemporaryDirectory() as directory:
        try:
            test(Tree(directory))
            print(f"ok {test.__name__}")
        except Exception as error:
            traceback.print_exc()
            print(f"FAIL {test.__name__}: {str(error)[:200]!r}")
            failed = 1
sys.exit(failed)
