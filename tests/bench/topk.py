# SPDX-License-Identifier: Apache-2.0
#
# Exact top-k of libtwotower_reader beside faiss's IndexFlatIP, in one process and by turns: the CPU time
# of the thread that asks, median over the rounds. The same items and queries, k = 100, 1 query and 8.
#
# faiss is asked in each of its ways to search exactly (its own loop or BLAS, and BLAS in blocks of
# several sizes), and the fastest counts. By codes, our answers must be those without codes to the bit.
# faiss adds in another order, so recall is of its 100: rows whose scores differ by rounding may change
# places at the end.
#
# Items: normal (64 columns of a normal distribution), biased (64 and a last one about -8 to -2 to
# which queries say 1: how snapshots are), clustered (a thousand centres and rows close to them).
import argparse
import ctypes
import json
import statistics
import time

import faiss
import numpy as np

N, D, K, BATCHES = 1_000_000, 64, 100, (1, 8)


class Array(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("name", "role", "tensor", "dtype")] + [
        ("n_dims", ctypes.c_int),
        ("shape", ctypes.c_uint64 * 4),
        ("size", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
    ]


class Query(ctypes.Structure):
    _fields_ = [
        ("items", ctypes.POINTER(Array)),
        ("vector", ctypes.c_void_p),
        ("k", ctypes.c_uint32),
        ("n_adjust", ctypes.c_uint32),
        ("adjust_rows", ctypes.c_void_p),
        ("adjust_bonus", ctypes.c_void_p),
        ("n_exclude", ctypes.c_uint32),
        ("exclude_rows", ctypes.c_void_p),
    ]


class Ours:
    def __init__(self, library, items):
        self.library = library
        self.items = items
        n, columns = items.shape
        self.array = Array(dtype=b"F32", n_dims=2, shape=(n, columns), size=items.nbytes, data=items.ctypes.data)
        self.codes = ctypes.c_void_p()

    def make(self):
        start = time.thread_time()
        assert self.library.tt_codes_make(ctypes.byref(self.codes), ctypes.byref(self.array)) == 0
        return time.thread_time() - start

    def free(self):
        self.library.tt_codes_free(self.codes)

    def search(self, queries, coded):
        batch = len(queries)
        asked = (Query * batch)(
            *(
                Query(items=ctypes.pointer(self.array), vector=queries.ctypes.data + i * queries.strides[0], k=K)
                for i in range(batch)
            )
        )
        rows, scores = np.empty((batch, K), np.uint32), np.empty((batch, K), np.float32)
        found = np.empty(batch, np.uint32)
        start = time.thread_time()
        rc = self.library.tt_topk_batch(
            asked,
            ctypes.c_uint32(batch),
            self.codes if coded else None,
            ctypes.c_void_p(rows.ctypes.data),
            ctypes.c_void_p(scores.ctypes.data),
            ctypes.c_void_p(found.ctypes.data),
        )
        seconds = time.thread_time() - start
        assert rc == 0 and (found == K).all()
        return seconds, rows, scores


def faiss_ways(index, queries):
    def search(threshold, block):
        faiss.cvar.distance_compute_blas_threshold = threshold
        faiss.cvar.distance_compute_blas_database_bs = block
        start = time.thread_time()
        _, rows = index.search(queries, K)
        return time.thread_time() - start, rows

    loop = lambda: search(2**31 - 1, 1024)
    return {"own loop": loop} | {f"BLAS, blocks of {n}": lambda n=n: search(1, n) for n in (256, 1024, 4096)}


def aligned(x):
    """As the reader hands items out: on a boundary of 64 bytes, which numpy doesn't promise."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    y = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    y[:] = x
    return y


def items_make(kind, rng):
    if kind == "clustered":
        centres = rng.standard_normal((1000, D), dtype=np.float32)
        items = centres[rng.integers(0, 1000, N)]
        items += 0.3 * rng.standard_normal((N, D), dtype=np.float32)
        return items, centres[:8] + 0.3 * rng.standard_normal((8, D), dtype=np.float32)
    columns = D + (kind == "biased")
    items = rng.standard_normal((N, columns), dtype=np.float32)
    queries = rng.standard_normal((8, columns), dtype=np.float32)
    if kind == "biased":
        items[:, D] -= 5
        queries[:, D] = 1
    return items, queries


def report(as_json, **line):
    if as_json:
        line |= {} if "normal" in line["stage"] else {"detail": True}
        print(json.dumps(line), flush=True)
        return
    text = f"{line['stage']:60} {line['ours']:8.3f} {line['unit']}"
    if "ratio" in line:
        text += f", {line['reference']} {line['theirs']:.3f}: {line['ratio']:.2f} x (goal {line['goal']})"
    print(text + "".join(f", {key} {line[key]}" for key in ("recall", "faiss", "megabytes") if key in line), flush=True)


def measure(library, kind, options):
    items, queries = items_make(kind, np.random.default_rng(7))
    items = aligned(items)
    ours, index = Ours(library, items), faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    shape = f"1M x {items.shape[1]} {kind}"
    making = [ours.make()]
    for _ in range(2):
        ours.free()
        making.append(ours.make())
    for batch in BATCHES:
        asked = np.ascontiguousarray(queries[:batch])
        ways = faiss_ways(index, asked)
        times = {name: [] for name in ("f32", "int8", *ways)}
        for _ in range(options.rounds):
            seconds, rows, scores = ours.search(asked, False)
            times["f32"].append(seconds)
            seconds, coded_rows, coded_scores = ours.search(asked, True)
            times["int8"].append(seconds)
            assert (rows == coded_rows).all() and scores.tobytes() == coded_scores.tobytes()
            for name, way in ways.items():
                seconds, theirs = way()
                times[name].append(seconds)
        ms = {name: statistics.median(seconds) / batch * 1e3 for name, seconds in times.items()}
        best = min(ways, key=ms.get)
        recall = statistics.mean(len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), theirs.tolist()))
        for stage, goal in ("f32", ">= 1"), ("int8", ">= 3"):
            report(
                options.json,
                stage=f"exact top-k, {shape}, k={K}, batch {batch}, {stage}",
                reference="faiss-cpu IndexFlatIP",
                unit="ms per query",
                ours=round(ms[stage], 4),
                theirs=round(ms[best], 4),
                ratio=round(ms[best] / ms[stage], 3),
                goal=goal,
                recall=round(recall, 4),
                faiss=best,
            )
    report(
        options.json,
        stage=f"codes of a snapshot, {shape}",
        unit="CPU seconds",
        ours=round(statistics.median(making), 4),
        megabytes=round(N * ((items.shape[1] + 2) // 4 * 4 + 8) / 1e6),
    )
    ours.free()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    library = ctypes.CDLL(options.library)
    library.tt_codes_free.restype = None
    if not options.json:
        print(f"faiss {faiss.__version__} ({faiss.get_compile_options().strip()}), {options.rounds} rounds")
    for kind in "normal", "biased", "clustered":
        measure(library, kind, options)


if __name__ == "__main__":
    main()
