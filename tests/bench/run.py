#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks of this directory and makes one table of what they measure.

    tests/run bench [NAME...] [--compare OLD.json] [--output FILE.json] [--limit SECONDS]
    tests/run bench --markdown FILE.json

Without a NAME all are run: bench_NAME.c, which is built in build/release/tests, and NAME.sh. A script
that names bench_NAME runs that program itself. Each has SECONDS (default 180) and is then killed, with
all that it started; all together have ten minutes.

A benchmark is called with --json and prints one JSON object per line, and nothing else:

    {"stage": "dot, n = 64", "unit": "ns per float", "ours": 0.04, "reference": "plain C", "theirs": 0.2,
     "ratio": 5.0, "goal": ">= 1"}

stage and unit must be there, and ours or ratio; ratio is the number that the goal speaks of. Other keys are
kept. "detail": true keeps a figure out of --markdown. A line `skip NAME: why` says what could not be
measured here. One whose text does not name --json has no figures and is not run.

Figures, machine and commit are written to FILE.json, default build/bench/latest.json; what a benchmark
said beside its figures to build/bench/NAME.log.

--compare marks what became worse by more than a tenth since OLD.json: a figure of ours, where a unit
that is a rate (per second, /s, GF, recall, share) is better when it is larger and all others when smaller; or a
ratio, which is better when smaller if its goal begins with <. A figure that is missing is worse, too.
--markdown prints the table of such a file for a document.

The exit status is 1 when a benchmark failed or something is worse, 64 for a mistake in the command.
"""
import argparse
import datetime
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILT = ROOT / "build/release/tests"
OUTPUT = ROOT / "build/bench"
ALL_SECONDS = 600
WORSE = 0.10

# From a record to a served vector; what is not listed comes last.
ORDER = """decode ingest broker stages kernels softmax tables attention peers cut publish recovery topk
idspace truth""".split()
# These measure how good the model is, not how fast, and take longer than all others together.
APART = {"objectives": "it measures quality and takes long: tests/bench/objectives.sh",
         "rerank": "it measures quality, on a stream of its own: tests/bench/bench_rerank.c"}
LARGER = re.compile(r"per (\S+-)?second|/s\b|\bGF|recall|share", re.IGNORECASE)


def benches():
    """Name -> commands, in the order in which they run. A command is None when it has no figures."""
    programs = {path.stem.removeprefix("bench_"): path for path in HERE.glob("bench_*.c")}
    scripts = {path.stem: path for path in HERE.glob("*.sh")}
    names = sorted(programs | scripts)
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    found = {}
    for name in names:
        commands = []
        if script := scripts.get(name):
            text = script.read_text()
            if (python := script.with_suffix(".py")).exists():
                text += python.read_text()
            if "--json" in text:
                commands.append(["bash", str(script), "--json"])
                if f"bench_{name}" in text:
                    programs.pop(name, None)
        if (program := programs.get(name)) and "--json" in program.read_text():
            commands.append([str(BUILT / f"bench_{name}"), "--json"])
        found[name] = commands
    return found


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figure_of(line):
    """The figure of one line of output; ValueError says what is wrong with it."""
    figure = json.loads(line)
    if not isinstance(figure, dict):
        raise ValueError("not an object")
    for key in ("stage", "unit"):
        if not isinstance(figure.get(key), str) or not figure[key]:
            raise ValueError(f"no {key}")
    for key in ("ours", "theirs", "ratio"):
        if key in figure and not number(figure[key]):
            raise ValueError(f"{key} is not a number")
    if "ours" not in figure and "ratio" not in figure:
        raise ValueError("neither ours nor ratio")
    return figure


def key_of(figure):
    return (figure["program"], figure["stage"], figure.get("reference", ""), figure["unit"])


def killed(process):
    """Ends a benchmark with all that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run_command(command, log, seconds):
    """Status and output; the status is None when the time was over."""
    if not os.access(command[0], os.X_OK) and command[0] != "bash":
        return 127, ""
    with open(log, "ab") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
                                   start_new_session=True)
        try:
            out, _ = process.communicate(timeout=seconds)
            status = process.returncode
        except subprocess.TimeoutExpired:
            killed(process)
            out, _ = process.communicate()
            status = None
        finally:
            killed(process)
    return status, out.decode(errors="replace")


def run_bench(name, commands, seconds):
    """What came of a benchmark: {name, result, why, seconds} and its figures."""
    if name in APART or not commands:
        why = APART.get(name, "it does not know --json")
        return {"name": name, "result": "skip", "why": f"no figures: {why}", "seconds": 0}, []
    log = OUTPUT / f"{name}.log"
    log.write_bytes(b"")
    begun = time.monotonic()
    figures, skips, wrong = [], [], []
    for command in commands:
        left = seconds - (time.monotonic() - begun)
        status, out = run_command(command, log, left) if left > 0 else (None, "")
        with open(log, "a") as file:
            file.write(out)
        for at, line in enumerate(out.splitlines(), 1):
            if line.startswith("skip"):
                skips.append(re.sub(r"^skip( \S+)?: *", "", line))
                continue
            try:
                figures.append(figure_of(line) | {"program": name})
            except ValueError as error:
                wrong.append(f"line {at} is no figure ({error}): {line[:60]}")
        if status is None:
            wrong.insert(0, f"not done in {seconds:.0f} s")
        elif status == 127 and not out:
            wrong.insert(0, f"{command[0]} is not built")
        elif status != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            wrong.insert(0, f"ended with status {status}: {' '.join(last)[:120]}")
    keys = [key_of(figure) for figure in figures]
    wrong += [f"the stage '{key[1]}' comes twice" for key in sorted({k for k in keys if keys.count(k) > 1})]
    if not figures and not skips and not wrong:
        wrong.append("it printed no figure")
    result = "FAIL" if wrong else "ok" if figures else "skip"
    why = "; ".join(wrong[:3]) or "; ".join(skips)
    return {"name": name, "result": result, "why": why, "seconds": round(time.monotonic() - begun, 1)}, figures


# ---- The machine.

def said_by(*command):
    """What a command prints; nothing when it cannot be run."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def cpu():
    model, flags = "", set()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        if key.strip() == "flags":
            flags = set(value.split())
    names = {"avx2": "avx2", "fma": "fma", "avx512": "avx512f", "vnni": "avx512_vnni", "bf16": "avx512_bf16",
             "amx": "amx_tile"}
    return model, [name for name, flag in names.items() if flag in flags]


def machine():
    model, flags = cpu()
    kilobytes = re.search(r"MemTotal: *(\d+)", pathlib.Path("/proc/meminfo").read_text())
    said = {words[0]: words[1] for line in said_by(os.environ["TWOTOWER"], "--version").splitlines()
            if len(words := line.split(None, 1)) == 2}
    cache = ROOT / "build/release/CMakeCache.txt"
    compiler = re.search(r"^CMAKE_C_COMPILER:\w+=(.*)$", cache.read_text(), re.M) if cache.exists() else None
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(kilobytes[1]) / 2**20, 1) if kilobytes else None,
        "kernel": os.uname().release,
        "flags": flags,
        "blas": said.get("blas", ""),
        "kernels": said.get("kernels", ""),
        "compiler": said_by(compiler[1], "--version").partition("\n")[0] if compiler else "",
        "load_before": [round(load, 2) for load in os.getloadavg()],
    }


# ---- Tables.

def shown(value):
    if value is None:
        return ""
    if value == 0 or 1000 <= abs(value) < 1e12:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def reached(figure):
    """Whether the ratio is what the goal says; None when there is no goal."""
    goal = re.fullmatch(r"\s*(<=|>=|<|>)\s*([0-9.]+)\s*", figure.get("goal", "")) if "ratio" in figure else None
    if not goal:
        return None
    ratio, limit = figure["ratio"], float(goal[2])
    return {"<=": ratio <= limit, ">=": ratio >= limit, "<": ratio < limit, ">": ratio > limit}[goal[1]]


def row(figure):
    goal = figure.get("goal", "") + ("" if reached(figure) in (None, True) else ", missed")
    return [figure["stage"], shown(figure.get("ours")), figure["unit"], shown(figure.get("theirs")),
            figure.get("reference", ""), shown(figure.get("ratio")), goal]


HEAD = ["stage", "ours", "unit", "theirs", "reference", "ratio", "goal"]
RIGHT = {"ours", "theirs", "ratio"}


def table(figures):
    rows = [HEAD] + [row(figure) for figure in figures]
    widths = [max(len(line[i]) for line in rows) for i in range(len(HEAD))]
    for line in rows:
        cells = [cell.rjust(width) if head in RIGHT else cell.ljust(width) for cell, width, head in
                 zip(line, widths, HEAD)]
        print("  ".join(cells).rstrip())


def markdown(run):
    m = run["machine"]
    print(f"On {m['cores']} cores of {m['cpu']} ({', '.join(m['flags'])}; {m['memory_gib']} GiB), {m['blas']}, "
          f"kernels {m['kernels']}, {m['compiler']}, Linux {m['kernel']}; load before {m['load_before'][0]}; "
          f"commit {run['commit']}, {run['date'][:10]}.\n")
    print("| stage | ours | theirs | ratio | goal | `tests/run bench` |\n| --- | --- | --- | --- | --- | --- |")
    for figure in run["figures"]:
        if figure.get("detail"):
            continue
        stage, ours, unit, theirs, reference, ratio, goal = (cell.replace("|", "\\|") for cell in row(figure))
        ours = f"{ours} {unit}" if ours else unit
        theirs = f"{theirs} ({reference})" if theirs else reference
        print(f"| {stage} | {ours} | {theirs} | {ratio} | {goal} | {figure['program']} |")
    for bench in run["benches"]:
        if bench["result"] != "ok":
            print(f"\n{'Failed' if bench['result'] == 'FAIL' else 'Not measured'}: {bench['name']} ({bench['why']}).")


# ---- Comparing.

def worse_by(old, new, larger):
    """By what share of the old value the new one is worse; below 0 when it is better."""
    if old == 0:
        return 0.0 if new == 0 or larger == (new > 0) else math.inf
    return (old - new) / abs(old) if larger else (new - old) / abs(old)


def compare(old, new):
    """A sentence for every figure that became worse."""
    before = {key_of(figure): figure for figure in old["figures"]}
    now = {key_of(figure): figure for figure in new["figures"]}
    ran = {bench["name"] for bench in new["benches"] if bench["result"] != "skip"}
    worse = []
    for key, was in before.items():
        figure = now.get(key)
        name = f"{was['stage']} ({was['program']})"
        if figure is None:
            if was["program"] in ran:
                worse.append(f"{name}: it is missing")
            continue
        for what, larger in (("ours", bool(LARGER.search(was["unit"]))),
                             ("ratio", not was.get("goal", "").lstrip().startswith("<"))):
            if what not in was:
                continue
            if what not in figure:
                worse.append(f"{name}: {what} is missing")
            elif (by := worse_by(was[what], figure[what], larger)) > WORSE:
                unit = f" {was['unit']}" if what == "ours" else ""
                worse.append(f"{name}: {what} {shown(was[what])} -> {shown(figure[what])}{unit}, "
                             f"worse by {100 * by:.0f} %")
    return worse


def run_read(path):
    try:
        run = json.loads(pathlib.Path(path).read_text())
        for figure in run["figures"]:
            key_of(figure)
        run["machine"], run["benches"], run["commit"], run["date"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"tests/run bench: {path} is not what a run writes: {error}")
    return run


def main():
    parser = argparse.ArgumentParser(prog="tests/run bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--compare", metavar="OLD.json")
    parser.add_argument("--output", metavar="FILE.json", default=OUTPUT / "latest.json")
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=180)
    parser.add_argument("--markdown", metavar="FILE.json")
    parser.add_argument("-h", "--help", action="store_true")
    parser.error = lambda message: (print(f"tests/run bench: {message}", file=sys.stderr), sys.exit(64))
    options = parser.parse_args()
    if options.help:
        print(__doc__.strip())
        return 0
    if options.markdown:
        markdown(run_read(options.markdown))
        return 0
    old = run_read(options.compare) if options.compare else None
    found = benches()
    for name in options.names:
        if name not in found:
            parser.error(f"there is no benchmark '{name}'; there are {', '.join(found)}")

    OUTPUT.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TWOTOWER", str(ROOT / "build/release/twotower"))
    os.environ.setdefault("TWOTOWER_DATA", str(ROOT.parent / "shared/data"))
    new = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
           "commit": said_by("git", "describe", "--always", "--dirty", "--exclude", "*") or "unknown",
           "machine": machine(), "benches": [], "figures": []}
    print(f"commit {new['commit']}, {new['date']}")
    for key, value in new["machine"].items():
        print(f"    {key:12} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    begun = time.monotonic()
    for name in [name for name in found if not options.names or name in options.names]:
        left = ALL_SECONDS - (time.monotonic() - begun)
        if left > 0:
            bench, figures = run_bench(name, found[name], min(options.limit, left))
        else:
            bench, figures = {"name": name, "result": "FAIL", "seconds": 0,
                              "why": f"the {ALL_SECONDS} s of all were over"}, []
        new["benches"].append(bench)
        new["figures"] += figures
        said = f": {bench['why']}" if bench["why"] else ""
        if bench["result"] == "ok":
            said = f" {len(figures)} figures in {bench['seconds']:.0f} s" + (said and f"; skipped{said}")
        print(f"{bench['result']} {name}{said}", flush=True)

    if new["figures"]:
        print()
        table(new["figures"])
    path = pathlib.Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(new, indent=1) + "\n")
    print(f"\n{len(new['figures'])} figures in {time.monotonic() - begun:.0f} s; "
          f"all of it is in {os.path.relpath(path)}")
    worse = compare(old, new) if old else []
    if old:
        if old["machine"].get("cpu") != new["machine"]["cpu"]:
            print(f"The other figures are from another machine: {old['machine'].get('cpu')}")
        print(f"{len(worse)} of {len(old['figures'])} figures are worse than at {old['commit']}, {old['date']}")
        for sentence in worse:
            print(f"FAIL worse: {sentence}")
    return 1 if worse or any(bench["result"] == "FAIL" for bench in new["benches"]) else 0


if __name__ == "__main__":
    sys.exit(main())
