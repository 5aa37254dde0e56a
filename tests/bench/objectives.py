# SPDX-License-Identifier: Apache-2.0
"""What every ingredient and objective gives, measured on the recorded streams.

    objectives.py [--data DIR] [--json] [TABLE]...

    ablation   the default model without one ingredient, or with one more (ml1m, mind-sample5k)
    debias     recall of the truly relevant item, weights by position (ml1m-slates and its truth)
    follow     distillation, alignment, preferences; a ranker that knows nothing (two streams)
    tail       recall of the less popular half of the items, with logQ and without (ml1m)

Each row is one pass over a stream by `twotower eval`, or by bench_truth where the truth judges:
predicted before learned, all examples scored but for ml1m, where it is a quarter. A row whose
option the program does not know says so. Rows run two at a time; the whole takes a few minutes.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("TWOTOWER", str(ROOT / "build/release/twotower"))
TRUTH = str(ROOT / "build/release/tests/bench_truth")

# Small streams need small chunks: a chunk of 10,000 would be half of ml1m-slates.
PROTOCOL = {
    "ml1m": [],
    "mind-sample5k": ["eval.chunk=64", "eval.sampling=1"],
    "ml1m-slates": ["eval.chunk=512", "eval.sampling=1"],
}

# So small that no float moves: slates are compared with the ranker, and nothing learns from them.
MEASURED_ONLY = "distill.weight=1e-30"

ABLATION = [
    ("default", []),
    ("history of 1", ["model.history=1"]),
    ("history of 5", ["model.history=5"]),
    ("no repeat term", ["model.repeat=0"]),
    ("popularity without its fastest scale", ["model.prior_half_life_recent=50000"]),
    ("popularity of the last batch alone",
     ["model.prior_half_life_" + scale + "=1" for scale in ("fast", "slow", "recent")]),
    ("no uniform negatives", ["model.uniform_negatives=0"]),
    ("1024 uniform negatives", ["model.uniform_negatives=1024"]),
    ("no L2", ["model.l2=0"]),
    ("no logQ", ["model.correction=none"]),
    ("with refined logQ", ["model.correction=refined"]),
    ("with attention", ["model.attention=1"]),
    ("with replay of 128", ["model.replay=128"]),
]

# Of the terms on slates, on top of the default model, where the stream has slates to learn from.
TERMS = [
    ("with debiasing", ["debias.estimator=pbm"]),
    ("with distillation", ["distill.weight=1"]),
    ("with alignment", ["align.weight=1"]),
    ("with preferences", ["preference.weight=1"]),
    ("with the light ranker", ["ranker.weight=1"]),
    ("with the light ranker alone", ["ranker.weight=1", "ranker.stop_gradient=true"]),
]

DEBIAS = [
    ("off", []),
    ("position, ratio", ["debias.estimator=position"]),
    ("position, difference", ["debias.estimator=position", "debias.form=difference"]),
    ("position, z", ["debias.estimator=position", "debias.form=z"]),
    ("pbm", ["debias.estimator=pbm"]),
    ("pbm, cap 3", ["debias.estimator=pbm", "debias.cap=3"]),
    ("user_mean", ["debias.estimator=user_mean"]),
    ("combined", ["debias.estimator=combined"]),
    ("position, seed form", ["debias.estimator=position", "debias.form=seed"]),
    ("combined, seed form", ["debias.estimator=combined", "debias.form=seed"]),
]

FOLLOW = [
    ("off", [MEASURED_ONLY]),
    ("listwise", ["distill.weight={w}", "distill.form=listwise"]),
    ("plackett_luce", ["distill.weight={w}", "distill.form=plackett_luce"]),
    ("top_positives", ["distill.weight={w}", "distill.form=top_positives"]),
    ("soft_pair", ["distill.weight={w}", "distill.form=soft_pair"]),
    ("margin", ["distill.weight={w}", "distill.form=margin"]),
    ("align kl", [MEASURED_ONLY, "align.weight={w}"]),
    ("align policy", [MEASURED_ONLY, "align.weight={w}", "align.form=policy"]),
    ("align policy, top 5",
     [MEASURED_ONLY, "align.weight={w}", "align.form=policy", "align.top_k=5"]),
    ("align shaped", [MEASURED_ONLY, "align.weight={w}", "align.form=shaped"]),
    ("align dpo", [MEASURED_ONLY, "align.weight={w}", "align.form=dpo"]),
    ("align s_dpo", [MEASURED_ONLY, "align.weight={w}", "align.form=s_dpo"]),
    ("align kl, proxy", [MEASURED_ONLY, "align.weight={w}", "align.teacher=proxy"]),
    ("default and trust region", ["distill.weight={w}", "align.trust=0.1"]),
    ("align policy, top 5, preference",
     [MEASURED_ONLY, "align.weight={w}", "align.form=policy", "align.top_k=5",
      "preference.weight=1"]),
    ("default and preference", ["distill.weight={w}", "preference.weight=1"]),
    ("preference alone", [MEASURED_ONLY, "preference.weight=1"]),
]
# What a slate's loss counts: mind has 1.5 engagements a slate, ml1m-slates 0.36 and a guard that
# lets 2.6 times as much through.
WEIGHTS = {"mind-sample5k": "5", "ml1m-slates": "0.1"}
SHUFFLED = [
    ("off", [MEASURED_ONLY]),
    ("distillation", ["distill.weight={w}"]),
    ("distillation and alignment", ["distill.weight={w}", "align.weight={w}"]),
    ("without the guard", ["distill.weight={w}", "align.guard=false"]),
]

TAIL = [("with logQ", []), ("without", ["model.correction=none"])]


def figures_of_eval(stream, options):
    arguments = [x for o in options for x in ("-o", o)]
    run = subprocess.run([PROGRAM, "eval", "--events", str(stream), "--json"] + arguments,
                         capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return json.loads(run.stdout)
    unknown = "unknown key" in run.stderr or "expected one of" in run.stderr
    return {"failed": "no such option" if unknown else run.stderr.strip().splitlines()[-1]}


def figures_of_truth(stream, options):
    run = subprocess.run([TRUTH, str(stream)] + options, capture_output=True, text=True,
                         check=False)
    if run.returncode != 0:
        return {"failed": run.stderr.strip().splitlines()[-1]}
    figures = {}
    for word in run.stdout.split():
        name, value = word.split("=")
        figures[name] = value if "," in value else float(value)
    return figures


def records(path):
    with subprocess.Popen(["zstd", "-dcq", str(path)], stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            yield json.loads(line)


def stream_with(source, to, name, lines):
    """A copy of a stream with one file replaced; the others are links."""
    to.mkdir()
    for path in source.iterdir():
        if path.name != name:
            (to / path.name).symlink_to(path.resolve())
    text = "".join(json.dumps(line) + "\n" for line in lines)
    subprocess.run(["zstd", "-q", "-o", str(to / name)], input=text, text=True, check=True)
    return to


def scores_shuffled(source):
    """The scores of every slate dealt out anew among its items: a ranker that knows nothing."""
    deal = random.Random(1)
    for record in records(source / "ranker_scores.jsonl.zst"):
        scores = [item["scores"] for item in record["items"]]
        deal.shuffle(scores)
        for item, score in zip(record["items"], scores):
            item["scores"] = score
        yield record


def clicks_unbiased(source):
    """As many clicks as in the stream, by the same truth and noise, but each position looked at
    equally often: what debiasing restores, but for the noise that its weights add."""
    draw = random.Random(1)
    truth = list(records(source / "truth.jsonl.zst"))
    users = {r["request_id"]: r["user_id"] for r in records(source / "impressions.jsonl.zst")}
    looks = [i["examined"] for r in truth for i in r["items"]]
    examined, noise = sum(looks) / len(looks), 0.02
    for record in truth:
        for item in record["items"]:
            if draw.random() < examined * (1 if item["relevant"] else noise):
                yield {"request_id": record["request_id"], "user_id": users[record["request_id"]],
                       "item_id": item["item_id"], "action": "click", "value": 1,
                       "ts": record["ts"]}


def measure(rows):
    """rows: (table, stream's name, directory, row's name, options, how); adds what was found."""
    def one(row):
        return {"table": row[0], "stream": row[1], "row": row[3], "options": row[4],
                "figures": row[5](row[2], row[4])}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, rows))


def table_ablation(data, _temporary):
    rows = [("ablation", s, data / s, name, PROTOCOL[s] + options, figures_of_eval)
            for s in ("ml1m", "mind-sample5k") for name, options in ABLATION]
    rows += [("ablation", s, data / s, name, PROTOCOL[s] + options, figures_of_eval)
             for s in ("mind-sample5k",) for name, options in TERMS]
    return measure(rows), ["recall@10", "recall@100", "tail_recall@100", "logloss",
                           "examples_per_second"]


def table_debias(data, temporary):
    source = data / "ml1m-slates"
    fair = stream_with(source, temporary / "unbiased", "engagements.jsonl.zst",
                       clicks_unbiased(source))
    rows = [("debias", f"ml1m-slates, chunk {chunk}", source, name,
             [f"eval.chunk={chunk}"] + options, figures_of_truth)
            for chunk in (64, 512) for name, options in DEBIAS]
    rows += [("debias", f"ml1m-slates, chunk {chunk}", fair, "clicks without position bias",
              [f"eval.chunk={chunk}"], figures_of_truth) for chunk in (64, 512)]
    rows.sort(key=lambda row: len(row[1]))
    return measure(rows), ["recall@10", "recall@100", "top@100", "low@100", "clicks_recall@100",
                           "spearman_clicks", "spearman", "pearson", "mass_off", "curve_off",
                           "curve"]


def table_follow(data, temporary):
    rows = []
    for s in ("mind-sample5k", "ml1m-slates"):
        def options_of(options, stream=s):
            return PROTOCOL[stream] + [o.replace("{w}", WEIGHTS[stream]) for o in options]
        rows += [("follow", s, data / s, name, options_of(options), figures_of_eval)
                 for name, options in FOLLOW]
        blind = stream_with(data / s, temporary / f"shuffled-{s}", "ranker_scores.jsonl.zst",
                            scores_shuffled(data / s))
        rows += [("follow", s + ", scores shuffled", blind, name, options_of(options),
                  figures_of_eval) for name, options in SHUFFLED]
    return measure(rows), ["recall@10", "recall@100", "overlap@5", "overlap@10",
                           "corpus_overlap@10", "rank_correlation", "guard"]


def table_tail(data, _temporary):
    rows = [("tail", "ml1m", data / "ml1m", name, options, figures_of_eval)
            for name, options in TAIL]
    return measure(rows), ["tail_recall@100", "tail_share", "recall@10", "recall@100"]


TABLES = {"ablation": (table_ablation, ("ml1m", "mind-sample5k")),
          "debias": (table_debias, ("ml1m-slates",)),
          "follow": (table_follow, ("mind-sample5k", "ml1m-slates")),
          "tail": (table_tail, ("ml1m",))}


def cell(figures, column):
    value = figures.get(column)
    if value is None or value != value:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def table_print(rows, columns):
    stream = None
    for row in rows:
        if row["stream"] != stream:
            stream = row["stream"]
            print(f"\n{row['table']}: {stream}")
            print(f"{'':32}" + "".join(f" {c:>17}" for c in columns))
        failed = row["figures"].get("failed")
        cells = "".join(f" {cell(row['figures'], c):>17}" for c in columns)
        print(f"{row['row']:32}" + (f" {failed}" if failed else cells), flush=True)


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{os.uname().machine}, {os.cpu_count()} cores"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path,
                        default=Path(os.environ.get("TWOTOWER_DATA", ROOT / "../shared/data")))
    parser.add_argument("--json", action="store_true", help="one JSON object for each row")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    asked = parser.parse_args()
    if not asked.json:
        print(f"machine: {machine()}")
    for name in asked.tables or TABLES:
        if name not in TABLES:
            parser.error(f"no table is called '{name}'; there are {', '.join(TABLES)}")
        make, streams = TABLES[name]
        absent = [s for s in streams if not (asked.data / s).is_dir()]
        if absent:
            print(f"skip {name}: no recorded stream in {asked.data / absent[0]}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="objectives.") as temporary:
            rows, columns = make(asked.data, Path(temporary))
        if asked.json:
            for row in rows:
                print(json.dumps(row))
        else:
            table_print(rows, columns)


if __name__ == "__main__":
    main()
