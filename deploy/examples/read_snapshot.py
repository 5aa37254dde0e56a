#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads a twotower snapshot with numpy and safetensors alone: read_snapshot.py DIRECTORY [ITEM_ID]

DIRECTORY is a snapshot or the directory of all. Prints what is in it and the ten items that fit best
to ITEM_ID (default: the first). Checksums are looked at when the package crc32c is installed.
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
try:
    from crc32c import crc32c
except ImportError:
    crc32c = None
arrays = {}
for file in manifest["files"]:
    if crc32c and crc32c((path / file["name"]).read_bytes()) != int(file["crc32c"], 16):
        sys.exit(f"{path / file['name']}: the checksum is not the manifest's")
    if "tensor" in file:
        arrays[file["name"]] = load_file(path / file["name"])[file["tensor"]]
        print(f"{file['name']:40} {arrays[file['name']].dtype} {arrays[file['name']].shape}")


def strings(data, offsets):
    data, offsets = (path / data).read_bytes(), arrays[offsets].tolist()
    return [data[a:b].decode() for a, b in zip(offsets, offsets[1:])]


ids = arrays.get("item_ids.safetensors")  # integers; else text, with a kind per id
ids = strings("item_ids_str.bin", "item_ids_off.safetensors") if ids is None else ids.tolist()
titled = "item_titles_off.safetensors" in arrays
titles = strings("item_titles.bin", "item_titles_off.safetensors") if titled else [""] * len(ids)
emb = arrays["item_emb.f32.safetensors"]  # the last column is the item's bias and popularity
row = [str(i) for i in ids].index(sys.argv[2]) if len(sys.argv) > 2 else 0
query = np.append(emb[row, :-1], np.float32(1))
scores = emb @ query
print(f"\nsnapshot {manifest['snapshot']}, best for {ids[row]}  {titles[row]}")
for r in np.lexsort((np.arange(len(scores)), -scores))[:10]:  # larger score, then smaller row
    print(f"{scores[r]:10.5f}  {ids[r]}  {titles[r]}")
