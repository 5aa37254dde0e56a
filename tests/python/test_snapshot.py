# SPDX-License-Identifier: Apache-2.0
"""A snapshot is read with safetensors and numpy alone, and is what its manifest says.

Two small streams are made here and learned by the program (TWOTOWER), one with integer ids and one
with strings of all kinds; everything below reads only the files that it published. Checksums and the
id index are computed by the few lines of their description in snapshot/id_index.h and crc32c.h, not by
our own library.
"""

import base64
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import traceback

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

U64 = (1 << 64) - 1


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC32C = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def fmix64(x):
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & U64
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & U64
    return x ^ x >> 33


def stream_write(directory, user_of, item_of, seed):
    """1,500 requests by 40 users for 120 items: each user clicks within a tenth of the catalogue."""
    rng = random.Random(seed)
    ts = 1_700_000_000_000
    with open(directory / "impressions.jsonl", "w") as impressions, open(
        directory / "engagements.jsonl", "w"
    ) as engagements, open(directory / "items.jsonl", "w") as items:
        for i in range(120):
            item = {"item_id": item_of(i), "ts": ts, "title": f"Title {i} — «ä»"}
            items.write(json.dumps(item) + "\n")
        for request in range(1500):
            ts += rng.randrange(500, 3000)
            u = rng.randrange(40)
            shown = [12 * (u % 10) + rng.randrange(12), rng.randrange(120)]
            if shown[0] == shown[1]:
                shown.pop()
            head = {"request_id": f"r{request}", "user_id": user_of(u), "ts": ts}
            slate = [{"item_id": item_of(i), "position": p} for p, i in enumerate(shown)]
            impressions.write(json.dumps({**head, "items": slate}) + "\n")
            # Every third basket has two items at one time.
            for i in shown if request % 3 == 0 else shown[:1]:
                click = {**head, "item_id": item_of(i), "action": "click", "value": 1.0, "ts": ts + 200}
                engagements.write(json.dumps(click) + "\n")


def snapshot_make(directory, user_of, item_of):
    stream = directory / "stream"
    stream.mkdir()
    stream_write(stream, user_of, item_of, seed=7)
    options = [
        "source.type=file",
        f"source.path={stream}",
        f"state.dir={directory / 'state'}",
        f"snapshot.dir={directory / 'snapshots'}",
        "ranker.weight=1",
        "value.tasks=click=2,*=-1",
    ]
    command = [os.environ["TWOTOWER"], "run", "--until-end"]
    for option in options:
        command += ["-o", option]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr[-4000:]}"
    roots = sorted((directory / "snapshots").rglob("LATEST"))
    assert len(roots) == 1, f"LATEST is in {len(roots)} places"
    return roots[0].parent


class Snapshot:
    """What a reader needs to know of the format, and all of it."""

    def __init__(self, root):
        generation, crc = (root / "LATEST").read_text().split()
        self.path = root / generation
        self.text = (self.path / "manifest.json").read_bytes()
        self.latest_crc = int(crc, 16)
        self.manifest = json.loads(self.text)
        self.files = {f["role"]: f for f in self.manifest["files"]}

    def tensor(self, role):
        file = self.files[role]
        return load_file(self.path / file["name"])[file["tensor"]]

    def ids(self, table):
        if f"{table}_ids" in self.files:
            return [int(i) for i in self.tensor(f"{table}_ids")]
        blob = (self.path / self.files[f"{table}_ids_bytes"]["name"]).read_bytes()
        offsets = [int(o) for o in self.tensor(f"{table}_ids_offsets")]
        kinds = self.tensor(f"{table}_ids_kind")
        words = [blob[a:b].decode() for a, b in zip(offsets, offsets[1:])]
        return [int(word) if kind == 1 else word for word, kind in zip(words, kinds)]


def the_manifest_proves_itself(s):
    text = s.text[: s.text.rindex(b',\n\t"manifest_crc32c"')]
    assert s.text == text + b',\n\t"manifest_crc32c":\t"%08x"\n}\n' % crc32c(text), s.text[-40:]
    assert s.latest_crc == crc32c(s.text)
    assert s.manifest["snapshot"] == int(s.path.name)


def every_file_has_its_size_and_checksums(s):
    for file in s.manifest["files"]:
        data = (s.path / file["name"]).read_bytes()
        assert len(data) == file["size"], file["name"]
        assert "%08x" % crc32c(data) == file["crc32c"], file["name"]
        chunk = file["chunk_crc32c"]["chunk"]
        wanted = [crc32c(data[i : i + chunk]) for i in range(0, len(data), chunk)]
        values = np.frombuffer(base64.b64decode(file["chunk_crc32c"]["values_b64"]), "<u4")
        assert values.tolist() == wanted, file["name"]
    there = {entry.name for entry in s.path.iterdir()}
    assert there == {f["name"] for f in s.manifest["files"]} | {"manifest.json"}, there


def every_tensor_has_the_dtype_and_shape_of_the_manifest(s):
    dtypes = {"f32": np.float32, "f16": np.float16, "u64": np.uint64, "u8": np.uint8, "u32": np.uint32,
              "i32": np.int32, "i64": np.int64, "f64": np.float64, "i8": np.int8}
    tensors = 0
    for file in s.manifest["files"]:
        if not file["name"].endswith(".safetensors"):
            continue
        loaded = load_file(s.path / file["name"])
        assert list(loaded) == [file["tensor"]], list(loaded)
        array = loaded[file["tensor"]]
        assert array.dtype == dtypes[file["dtype"].lower()], file
        assert list(array.shape) == file["shape"], file
        if array.dtype.kind == "f":
            assert np.isfinite(array).all(), file["name"]
        mapped = np.memmap(s.path / file["name"], array.dtype, "r", file["data_offset"], tuple(file["shape"]))
        assert file["data_offset"] % 4096 == 0 and np.array_equal(mapped, array), file["name"]
        with safe_open(s.path / file["name"], "numpy") as opened:
            assert opened.metadata()["snapshot"] == str(s.manifest["snapshot"]), opened.metadata()
        tensors += 1
    assert tensors >= 4, tensors


def items_in_half_precision_are_the_rounded_ones(s):
    by_dtype = {f["dtype"].lower(): f for f in s.manifest["files"] if f["name"].startswith("item_emb.")}
    assert {"f32", "f16"} <= set(by_dtype), sorted(by_dtype)
    full, half = (load_file(s.path / by_dtype[d]["name"])[by_dtype[d]["tensor"]] for d in ("f32", "f16"))
    assert full.any() and np.array_equal(full.astype(np.float16), half)


def the_index_finds_the_row_of_every_integer_id(s):
    for table in ("item", "user"):
        data = (s.path / s.files[f"{table}_index"]["name"]).read_bytes()
        ids = s.ids(table)
        assert data[:8] == b"TTOIDX01"
        seed, n_buckets, n = np.frombuffer(data[24:48], "<u8").tolist()
        assert n == len(ids) == len(set(ids))
        assert np.frombuffer(data[16:20], "<u4")[0] == 0, "the keys are no integers"
        buckets = np.frombuffer(data[4096:], np.dtype([("key", "<u8", 5), ("row", "<u4", 5), ("overflow", "<u4")]))
        assert len(buckets) == n_buckets
        for row, key in enumerate(ids):
            at = fmix64(key ^ seed) * n_buckets >> 64
            while True:
                hit = np.flatnonzero((buckets["key"][at] == np.uint64(key)) & (buckets["row"][at] != 0xFFFFFFFF))
                if hit.size:
                    assert buckets["row"][at][hit[0]] == row, key
                    break
                assert buckets["overflow"][at], f"{key} is not in the index"
                at = (at + 1) % n_buckets


def all_ids_are_there_and_as_they_were_sent(s, user_of, item_of):
    assert set(s.ids("item")) == {item_of(i) for i in range(120)}
    assert set(s.ids("user")) <= {user_of(u) for u in range(40)} and s.ids("user")


def attended(s, user, rows):
    """What one layer of attention with one head adds to a query: model/history_encoder.h."""
    def part(name):
        return s.tensor("dense_attention" + name).astype(float)

    ages = s.manifest["lineage"]["event_time_max_ms"] - s.tensor("user_history_ms")[user][: len(rows)]
    gaps = [min(int(max(age, 0) // 1000).bit_length(), 31) for age in ages]
    events = rows + part("_gaps")[gaps]
    normal = events - events.mean(axis=1, keepdims=True)
    normal /= np.sqrt((normal**2).mean(axis=1, keepdims=True) + 1e-6)
    asked = part("1_query_weight") @ normal[0] + part("1_query_bias")[0]
    keys, values = np.split(normal @ part("1_keyvalue_weight").T + part("1_keyvalue_bias")[0], 2, axis=1)
    weights = np.exp(keys @ asked / np.sqrt(rows.shape[1]))
    mixed = (weights / weights.sum()) @ values
    return (events[0] + part("1_output_weight") @ mixed + part("1_output_bias")[0]) @ part("_out")


def scores_of(s, user):
    """The recipe's scores of all items for a user's row: model/recipe.h, in double precision."""
    emb, history = s.tensor("item_embedding").astype(float), s.tensor("user_history")[user]
    history = history[history != 0xFFFFFFFF].astype(int)
    read, repeat = history[: s.manifest["history"]], history[: s.manifest["repeat"]]
    gates = np.exp(s.tensor("dense_history_gate")[len(read).bit_length()].astype(float))
    query = gates[4] * s.tensor("user_embedding")[user].astype(float)
    if len(read):
        rows = emb[read, :-1]
        weights = np.exp(-0.25 * np.arange(len(read)))
        weights /= weights.sum()
        basket = rows[: s.tensor("user_newest")[user]]
        query = query + gates[0] * basket.mean(axis=0) @ s.tensor("dense_history_newest").astype(float)
        query = query + gates[1] * weights @ rows @ s.tensor("dense_history_decayed").astype(float)
        query = query + gates[2] * rows.mean(axis=0) @ s.tensor("dense_history_mean").astype(float)
        query = query + gates[3] * weights @ s.tensor("item_context")[read].astype(float)
        if "dense_attention_out" in s.files:
            query = query + attended(s, user, rows)
    scores = emb @ np.append(query, 1)
    rho = s.tensor("dense_repeat")[0].astype(float)
    rho = rho + s.tensor("dense_repeat_by_length")[len(repeat).bit_length()].astype(float)
    for item in set(repeat.tolist()):
        places = np.flatnonzero(repeat == item)
        scores[item] += rho[int(places[0]).bit_length()] + rho[7] * np.log(len(places))
    return scores


def topk_says_what_numpy_computes(s):
    ids, users = s.ids("item"), s.ids("user")
    assert set(s.tensor("user_newest").tolist()) == {1, 2}, s.tensor("user_newest")
    for user in range(0, len(users), 3):
        scores = scores_of(s, user)
        command = [os.environ["TWOTOWER"], "topk", str(s.path), "--user", str(users[user]), "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["items"]
        best = np.sort(scores)[::-1][:10]
        assert len(found) == 10, found
        for item, score in zip(found, best):
            near = 1e-5 * max(1, abs(score))
            assert abs(item["score"] - score) < near, (users[user], item, score)
            assert abs(item["score"] - scores[item["row"]]) < near, (users[user], item, scores[item["row"]])
            assert item["id"] == ids[item["row"]], item
            assert item["title"].startswith("Title ") and item["title"].endswith("— «ä»"), item


def neighbours_are_those_of_the_largest_cosine(s):
    emb, ids = s.tensor("item_embedding")[:, :-1].astype(float), s.ids("item")
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    for row in range(0, len(ids), 17):
        command = [os.environ["TWOTOWER"], "topk", str(s.path), "--item", str(ids[row]), "--k", "7", "--json"]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        cosines = emb @ emb[row]
        cosines[row] = -2
        assert answer["score"] == "cosine", answer
        for item, cosine in zip(answer["items"], np.sort(cosines)[::-1][:7], strict=True):
            assert abs(item["score"] - cosine) < 1e-5, (ids[row], item, cosine)
            assert abs(item["score"] - cosines[item["row"]]) < 1e-5, (ids[row], item)


def the_example_for_readers_runs(s):
    example = pathlib.Path(__file__).parents[2] / "deploy" / "examples" / "read_snapshot.py"
    emb, ids = s.tensor("item_embedding"), s.ids("item")
    row = len(ids) // 2
    command = [sys.executable, str(example), str(s.path.parent), str(ids[row])]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    head, *lines = run.stdout[run.stdout.index("\nsnapshot ") + 1 :].splitlines()
    assert head.startswith(f"snapshot {s.path.name}, best for {ids[row]}  Title "), head
    best = np.sort(emb @ np.append(emb[row, :-1], np.float32(1)))[::-1][:10]
    assert np.allclose([float(line.split()[0]) for line in lines], best, atol=2e-5), lines


def the_example_of_two_stages_says_what_topk_says(s):
    example = pathlib.Path(__file__).parents[2] / "deploy" / "examples" / "rerank_snapshot.py"
    users = s.ids("user")
    for user in users[:: len(users) // 4]:
        command = [sys.executable, str(example), str(s.path), str(user), "40"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        command = [os.environ["TWOTOWER"], "topk", str(s.path), "--user", str(user), "--rerank", "40", "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["items"]
        lines = [line.split() for line in run.stdout.splitlines()]
        assert len(lines) == len(found) == 10, lines
        for line, item in zip(lines, found):
            said = [float(line[0]), float(line[1]), float(line[-3]), float(line[-1])]
            tasks = item["tasks"]
            assert np.allclose(said, [item["value"], item["score"], tasks["click"], tasks["*"]], atol=2e-5), (line, item)
            assert abs(item["value"] - (2 * tasks["click"] - tasks["*"])) < 1e-5, item


def string_of(kind):
    return lambda i: f"{kind}/{i}/ж\u00df" if i % 3 else (i if i % 2 else f"{i:d}x")


def integer_of(kind):
    return lambda i: (i + 1) * 0x9E3779B97F4A7C15 % (1 << 63) if kind == "item" else i


def attempt(sentence, check, *arguments):
    try:
        check(*arguments)
    except Exception:  # whatever it is, it is one failure with its trace, and the others go on
        print(f"FAIL {sentence}: {sys.exc_info()[1]}".splitlines()[0])
        print(traceback.format_exc())
        return False
    print(f"ok {sentence}")
    return True


def main():
    checks = [
        the_manifest_proves_itself,
        every_file_has_its_size_and_checksums,
        every_tensor_has_the_dtype_and_shape_of_the_manifest,
        items_in_half_precision_are_the_rounded_ones,
        topk_says_what_numpy_computes,
        neighbours_are_those_of_the_largest_cosine,
        the_example_for_readers_runs,
        the_example_of_two_stages_says_what_topk_says,
    ]
    for ids, of in ("integer ids", integer_of), ("string ids", string_of):
        with tempfile.TemporaryDirectory() as directory:
            made = []
            make = lambda: made.append(snapshot_make(pathlib.Path(directory), of("user"), of("item")))
            if not attempt(f"a stream with {ids} is learned and published", make):
                continue
            s = Snapshot(made[0])
            for check in checks:
                attempt(f"{check.__name__} ({ids})", check, s)
            attempt(f"all_ids_are_there_and_as_they_were_sent ({ids})",
                    all_ids_are_there_and_as_they_were_sent, s, of("user"), of("item"))
            if of is integer_of:
                attempt("the_index_finds_the_row_of_every_integer_id", the_index_finds_the_row_of_every_integer_id, s)


main()
