#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Serves one user in two stages from a snapshot, with numpy and safetensors alone:

    rerank_snapshot.py DIRECTORY USER_ID [CANDIDATES]

DIRECTORY is a snapshot or the directory of all, of the default model with a light ranker. Retrieval
finds CANDIDATES items (default: 100) by inner product and repeat term; the light ranker orders them
by the value that it expects of each. Prints the first ten: value, score, id. Everything comes from
one snapshot: weights of one say nothing of the vectors of another.
"""
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

path = pathlib.Path(sys.argv[1])
if not (path / "manifest.json").exists():
    path /= (path / "LATEST").read_text().split()[0]
manifest = json.loads((path / "manifest.json").read_bytes())
files = {file["role"]: file for file in manifest["files"]}
if manifest["model"] != "recipe" or "dense_attention_out" in files or "ranker" not in manifest:
    sys.exit(f"{path}: not of the default model, or without a light ranker")


def array(role):
    return load_file(path / files[role]["name"])[files[role]["tensor"]]


def ids(table):
    if f"{table}_ids" in files:
        return [str(i) for i in array(f"{table}_ids")]
    data, offsets = (path / files[f"{table}_ids_bytes"]["name"]).read_bytes(), array(f"{table}_ids_offsets").tolist()
    return [data[a:b].decode() for a, b in zip(offsets, offsets[1:])]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def query_of(user, history, newest, items, context):
    """The user tower: model/recipe.h has the formula."""
    h = history[: manifest["history"]]
    gates = np.exp(array("dense_history_gate")[len(h).bit_length()])
    q = gates[4] * array("user_embedding")[user]
    if len(h):
        decay = np.exp(-0.25 * np.arange(len(h)))
        decay /= decay.sum()
        g = min(max(newest, 1), len(h))
        q += gates[0] * items[h[:g]].mean(0) @ array("dense_history_newest")
        q += gates[1] * decay @ items[h] @ array("dense_history_decayed")
        q += gates[2] * items[h].mean(0) @ array("dense_history_mean") + gates[3] * decay @ context[h]
    return q


def add_repeats(scores, history):
    """What no vector can carry: the bonus of items that the user engaged with before."""
    seen = history[: manifest["repeat"]].tolist()
    rho = array("dense_repeat")[0] + array("dense_repeat_by_length")[len(seen).bit_length()]
    for k, item in enumerate(seen):
        if item not in seen[:k]:
            scores[item] += rho[k.bit_length()] + rho[7] * np.log(seen.count(item))


def values_of(q, V):
    """The light ranker (model/light_ranker.h) for a user vector and items (n, d): value, probabilities by task."""
    ranker = manifest["ranker"]
    R = (array("dense_ranker_heads") @ q + array("dense_ranker_heads_bias")[0]).reshape(ranker["heads"], -1)
    s = V @ R.T  # which of the user's heads an item speaks to
    pi = np.exp(s - s.max(1, keepdims=True))
    pi /= pi.sum(1, keepdims=True)
    phi = np.hstack([V, pi @ R, s, (V @ q)[:, None]])
    p = sigmoid(phi @ array("dense_ranker_tasks").T + array("dense_ranker_tasks_bias"))
    if ranker["value"] == "corrected":  # it learned from impressions that may still turn out well
        p = np.minimum(p, 0.5 - 1e-6)
        p = p / (1 - p)
    return p @ np.array([task["weight"] for task in ranker["tasks"]]), p


user = ids("user").index(sys.argv[2])
candidates = int(sys.argv[3]) if len(sys.argv) > 3 else 100
history = array("user_history")[user]
history = history[history != 0xFFFFFFFF]
emb = array("item_embedding")  # the last column is the item's bias and popularity
items, context = emb[:, :-1], array("item_context")

q = query_of(user, history, int(array("user_newest")[user]), items, context)
scores = items @ q + emb[:, -1]
add_repeats(scores, history)
best = np.lexsort((np.arange(len(scores)), -scores))[:candidates]
values, probabilities = values_of(q, items[best])
names = ids("item")
for i in np.lexsort((best, -values))[:10]:
    tasks = "  ".join(f"{task['name']} {p:.5f}" for task, p in zip(manifest["ranker"]["tasks"], probabilities[i]))
    print(f"{values[i]:10.5f}  {scores[best[i]]:10.5f}  {names[best[i]]}  {tasks}")
