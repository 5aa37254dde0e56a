#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Follows the snapshots that twotower publishes, with the standard library alone:

    follow_snapshot.py DIRECTORY [SECONDS]

Looks at LATEST every SECONDS (default 1) and takes what it names, newer or older: an operator may go
back (`twotower snapshot rollback`). What is not whole is not taken; the one before stays in use.
"""
import fcntl
import json
import mmap
import pathlib
import sys
import time


class Snapshot:
    """The files of one snapshot, mapped, and a lock that keeps the publisher from removing them."""

    def __init__(self, path):
        self.lock = open(path / "manifest.json", "rb")
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        self.manifest = json.load(self.lock)
        if str(self.manifest["snapshot"]) != path.name:
            raise ValueError(f"{path}: the manifest is that of {self.manifest['snapshot']}")
        self.data = {}
        for file in self.manifest["files"]:
            if (path / file["name"]).stat().st_size != file["size"]:
                raise ValueError(f"{path / file['name']}: not {file['size']} bytes")
            with open(path / file["name"], "rb") as f:
                self.data[file["role"]] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if file["size"] else b""


root = pathlib.Path(sys.argv[1])
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1
serving, taken = None, None
while True:
    try:
        latest = (root / "LATEST").read_text()
        # What it says, and not whether the number is larger: the pointer goes back as well.
        if latest != taken:
            serving, taken = Snapshot(root / latest.split()[0]), latest
            print(f"serving {serving.manifest['snapshot']}, {serving.manifest['items']} items", flush=True)
    except (OSError, ValueError, LookupError) as why:
        print(why, file=sys.stderr)
    time.sleep(seconds)
