#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What is done with snapshots once they are published: verify, inspect, topk, pin, roll back, and the
# example programs for readers, those in C against the installed library; and that none is published
# that is not good. The stream is the built-in one, so
# nothing recorded is needed. Environment and output as tests/e2e/run.sh says.
set -uo pipefail

# The program with sanitizers asks hostile files, when it is there.
strict=$TWOTOWER
[ ! -x "${TWOTOWER_DEV:-}" ] || strict=$TWOTOWER_DEV
work=$E2E_DIR

failed=0
verdict() # SENTENCE WHY-NOT
{
    if [ -z "$2" ]; then
        echo "ok $1"
    else
        echo "FAIL $1: $(head -n 1 <<<"$2")"
        failed=1
    fi
}

# Runs a program; leaves out, err and status.
asks()
{
    status=0
    "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
}

# says STATUS FILE TEXT SENTENCE: the last run ended so, and this stands in out or err.
says()
{
    local why=
    if [ "$status" -ne "$1" ]; then
        why="status $status instead of $1; $(head -n 3 "$work/err" | tr '\n' ' ')"
    elif ! grep -qF -- "$3" "$work/$2"; then
        why="'$3' is not in: $(head -n 3 "$work/$2" | tr '\n' ' ')"
    fi
    verdict "$4" "$why"
}

# learns NAME OPTION...: the stream, with state and snapshots below $work/NAME.
learns()
{
    local name=$1
    shift
    asks "$TWOTOWER" run --until-end -o source.type=builtin -o source.requests=20000 \
        -o source.users=500 -o source.catalogue=300 -o http.listen= \
        -o "state.dir=$work/$name/state" -o "snapshot.dir=$work/$name/snapshots" "$@"
    [ "$status" -eq 0 ]
}

if ! learns one; then
    says 0 err finished "the built-in stream is learned and published"
    exit 1
fi
root=$work/one/snapshots
generation=$(cut -d ' ' -f 1 "$root/LATEST")
snapshot=$root/$generation

# ---- verify

asks "$TWOTOWER" verify "$root"
says 0 out "ok generation=$generation" "verify finds the newest snapshot whole"
cp "$work/out" "$work/verified"
asks "$TWOTOWER" verify "$snapshot"
verdict "verify says the same of a snapshot by its own path" \
    "$(diff "$work/out" "$work/verified" >/dev/null || cat "$work/out" "$work/err")"
asks "$TWOTOWER" verify "$work/one/state/final"
says 0 out "format=twotower-checkpoint" "verify reads checkpoints"
asks "$TWOTOWER" verify "$root" --json
says 0 out '"ok":true' "verify --json says ok"
asks "$TWOTOWER" verify "$work/nowhere"
says 66 err "No such file" "verify of nothing is status 66"
mkdir "$work/empty"
asks "$TWOTOWER" verify "$work/empty"
says 66 err "no snapshot here" "verify of an empty directory is status 66"

# One byte in the middle of each file, one file at a time.
why=
for file in "$snapshot"/*; do
    rm -rf "$work/hurt"
    cp -r "$snapshot" "$work/hurt"
    python3 - "$work/hurt/$(basename "$file")" <<'FLIP'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(0, 2)
    f.seek(f.tell() // 2)
    byte = f.read(1)
    f.seek(-1, 1)
    f.write(bytes([byte[0] ^ 16]))
FLIP
    asks "$TWOTOWER" verify "$work/hurt"
    [ "$status" -eq 65 ] || why="$(basename "$file"): status $status; $(cat "$work/err")"
done
verdict "a flipped byte in any file is status 65" "$why"
asks "$TWOTOWER" verify "$work/hurt" --json
says 65 out '"ok":false' "verify --json of damage says why"

rm -rf "$work/hurt"
cp -r "$root" "$work/hurt"
rm "$work/hurt/$generation/item_index.oidx"
asks "$TWOTOWER" verify "$work/hurt"
says 65 err "item_index.oidx" "a missing file is status 65, and named"
cp "$snapshot/item_index.oidx" "$work/hurt/$generation/"
echo "$generation 00000000" >"$work/hurt/LATEST"
asks "$TWOTOWER" verify "$work/hurt"
says 65 err "not the one LATEST means" "a LATEST with another checksum is status 65"
cp "$root/LATEST" "$work/hurt/LATEST"
cp -r "$work/one/state/final/$(cut -d ' ' -f 1 "$work/one/state/final/LATEST")" "$work/hurt/"
truncate -s -1 "$work/hurt/$generation/user_index.oidx"
asks "$TWOTOWER" verify "$work/hurt"
says 65 err "user_index.oidx" "damage of the newest is told though an older one is whole"

# Damage with right checksums: only what the values mean can show it.
cat >"$work/forge.py" <<'FORGE'
"""forge.py SNAPSHOT DIRECTORY FILE CHANGE: copies the snapshot and changes `data`, the bytes of FILE, or
`manifest` when that is the file; all checksums and sizes are made right again."""
import base64, json, pathlib, shutil, struct, sys

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def forge(source, directory, name, change):
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    directory = pathlib.Path(directory)
    manifest = json.loads((directory / "manifest.json").read_bytes())
    if name == "manifest.json":
        change(manifest)
    else:
        data = bytearray((directory / name).read_bytes())
        change(data)
        (directory / name).write_bytes(data)
        file = next(file for file in manifest["files"] if file["name"] == name)
        file["crc32c"] = "%08x" % crc32c(data)
        sums = [crc32c(data[i : i + (1 << 20)]) for i in range(0, len(data), 1 << 20)]
        file["chunk_crc32c"]["values_b64"] = base64.b64encode(struct.pack(f"<{len(sums)}I", *sums)).decode()
    manifest.pop("manifest_crc32c", None)
    text = json.dumps(manifest)[:-1].encode()
    (directory / "manifest.json").write_bytes(text + b',\n\t"manifest_crc32c":\t"%08x"\n}\n' % crc32c(text))


if __name__ == "__main__":
    forge(*sys.argv[1:4], lambda data: exec(sys.argv[4], {"data": data, "manifest": data}))
FORGE
forged() # FILE CHANGE: verify with sanitizers of the forged snapshot
{
    python3 "$work/forge.py" "$snapshot" "$work/hurt" "$1" "$2"
    asks "$strict" verify "$work/hurt"
}
forged manifest.json "pass"
says 0 out "ok generation" "a manifest written anew with right checksums is taken"
forged user_history.safetensors "data[4096:4100] = b'\xff\xff\x00\x00'"
says 65 err "history of user row 0" "a history row outside the items is status 65"
forged user_newest.safetensors "data[4096:4100] = b'\xff\xff\x00\x00'"
says 65 err "history of user row 0" "a newest basket larger than its history is status 65"
forged golden.json "i = data.index(b'\"score\":') + 8; data[i] = ord('8' if data[i] == ord('9') else '9')"
says 65 err "golden.json: user 1" "a golden score that does not come out is status 65"
forged item_ids_str.bin "data[1] ^= 1"
says 65 err "item index" "an id that the index does not find is status 65"
forged item_titles_off.safetensors "data[4104:4112] = b'\xff' * 8"
says 65 err "title of item row" "a title outside its file is status 65"
forged manifest.json "manifest['options'] = manifest['options'].replace('model.dim=64', 'model.dim=1024')"
asks "$strict" topk "$work/hurt" --user u1
says 65 err "model.dim" "options that do not fit the vectors are status 65"

# An empty table may have rows of any width. None of them is on a stack.
cat >"$work/wide.py" <<'WIDE'
import sys

from forge import forge

source, directory = sys.argv[1:]


def widen(manifest):
    for file in manifest["files"]:
        if file["role"] in ("item_embedding", "item_context", "user_embedding"):
            file["shape"] = [0, (1 << 40) + (file["role"] == "item_embedding")]
            file["row_stride"] = file["shape"][1] * 4


forge(source, directory, "manifest.json", widen)
WIDE
mkdir "$work/silence"
touch "$work/silence/impressions.jsonl" "$work/silence/engagements.jsonl"
if learns none -o source.type=file -o "source.path=$work/silence"; then
    none=$work/none/snapshots
    asks "$strict" verify "$none"
    says 0 out "items=0 users=0" "a snapshot without items is whole"
    asks "$strict" topk "$none" --history ""
    verdict "nothing is the best of nothing" "$([ "$status" -eq 0 ] || cat "$work/err")"
    python3 "$work/wide.py" "$none/$(cut -d ' ' -f 1 "$none/LATEST")" "$work/hurt"
    asks "$strict" topk "$work/hurt" --history ""
    says 65 err "model.dim" "rows of a width that no model has are status 65"
else
    says 0 err finished "a stream without events is published"
fi

# Anything else may be said of a hostile snapshot, but every command ends by itself.
cat >"$work/hostile.py" <<'HOSTILE'
import os, pathlib, random, subprocess, sys

from forge import forge

program, source, directory = sys.argv[1:4]
seed = int(os.environ.get("SEED", "1"))
rng = random.Random(seed)
files = sorted(f.name for f in pathlib.Path(source).iterdir())
strange = [0, -1, 1, 0.5, 1e300, 2**53, "x", "", None, [], {}, True, [1, 2, 3, 4, 5], "\u001b[31m"]


def flip(data):
    for _ in range(rng.choice([1, 8, 200])):
        data[rng.randrange(len(data))] = rng.randrange(256)


def twist(manifest):
    def places(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            if isinstance(node[key], (dict, list)):
                yield from places(node[key])

    node, key = rng.choice(list(places(manifest)))
    node[key] = rng.choice(strange)


def cut(directory):
    path = pathlib.Path(directory) / rng.choice(files)
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


wrong = []
for attempt in range(60):
    name = rng.choice(files + ["manifest.json"] * 8)
    forge(source, directory, name, twist if name == "manifest.json" else flip)
    if attempt % 6 == 5:
        cut(directory)
    for command in ("verify",), ("inspect",), ("topk", "--user", "u1"), ("topk", "--item", "i1", "--json"), ("topk", "--user", "u1", "--rerank", "20"):
        run = subprocess.run([program, command[0], directory, *command[1:]], capture_output=True, timeout=60)
        said = run.stdout + run.stderr
        if run.returncode not in (0, 65, 66, 69) or b"\x1b" in said or b"Sanitizer" in said:
            wrong.append(f"{name}, attempt {attempt}: {command}: {run.returncode} {said[:3000]}")
if wrong:
    print(f"seed {seed}:", *wrong, sep="\n")
sys.exit(bool(wrong))
HOSTILE
asks python3 "$work/hostile.py" "$strict" "$snapshot" "$work/hurt"
[ "$status" -eq 0 ] || cat "$work/out" "$work/err"
verdict "no hostile snapshot stops verify, inspect or topk" "$([ "$status" -eq 0 ] || tail -n 1 "$work/out" "$work/err")"

# ---- inspect

asks "$TWOTOWER" inspect "$root"
says 0 out "items        300" "inspect says how many items there are"
says 0 out "recall@100" "inspect says how good the model was"
asks "$TWOTOWER" inspect "$root" --json
why=$(python3 - "$work/out" "$generation" 2>&1 <<'CHECK'
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["snapshot"] == int(sys.argv[2]), answer["snapshot"]
assert answer["items"] == 300 and len(answer["item_norms"]) == 5, answer
assert sorted(answer["item_norms"]) == answer["item_norms"], answer["item_norms"]
assert all("chunk_crc32c" not in file for file in answer["files"]), answer["files"]
CHECK
) || true
verdict "inspect --json is the manifest without its checksums" "$(tail -n 1 <<<"$why")"
asks "$TWOTOWER" inspect "$work/one/state/final"
says 0 out "twotower-checkpoint" "inspect reads checkpoints"
asks "$TWOTOWER" inspect "$work/nowhere"
says 66 err "No such file" "inspect of nothing is status 66"

# The same stream and slices, written at other times: what was learned is the same.
asks "$TWOTOWER" inspect --digest "$root"
digest=$(cat "$work/out")
verdict "inspect --digest prints a SHA-256" "$(grep -qxE '[0-9a-f]{64}' <<<"$digest" || echo "it prints '$digest'")"
why=
learns two -o snapshot.interval=100ms -o checkpoint.interval=100ms -o snapshot.keep=100 ||
    why="the second run ended with $status"
written() # NAME: how many checkpoints and snapshots the run left
{
    find "$work/$1" -name manifest.json | wc -l
}
[ "$(written two)" -gt "$(written one)" ] || why="${why:-the second run wrote no more than the first}"
asks "$TWOTOWER" inspect --digest "$work/two/snapshots"
[ "$(cat "$work/out")" = "$digest" ] || why="$digest is followed by $(cat "$work/out")"
verdict "two runs with different intervals of checkpoints and snapshots have one digest" "$why"

# ---- topk

asks "$TWOTOWER" topk "$root" --user u1 --k 5
why=
[ "$status" -eq 0 ] && [ "$(wc -l <"$work/out")" -eq 5 ] || why="status $status: $(cat "$work/out" "$work/err")"
verdict "topk --user prints k lines" "$why"
golden_lists() # SNAPSHOT: says what is different between golden.json and topk --user
{
    python3 - "$TWOTOWER" "$1" 2>&1 <<'CHECK' | tail -n 1
import json, subprocess, sys
program, snapshot = sys.argv[1:]
users = json.load(open(snapshot + "/golden.json"))["users"]
assert len(users) == 16, len(users)
for user in users:
    k = len(user["top"])
    said = subprocess.run([program, "topk", snapshot, "--user", str(user["user_id"]), "--k", str(k), "--json"],
                          capture_output=True, check=True).stdout
    found = json.loads(said)["items"]
    for i, (a, b) in enumerate(zip(found, user["top"], strict=True)):
        assert a["rank"] == i + 1 and a["id"] == b["item_id"] and a["row"] == b["row"], (user["user_id"], a, b)
        assert abs(a["score"] - b["score"]) < 1e-5 * max(1, abs(b["score"])), (user["user_id"], a, b)
CHECK
}
verdict "topk --user makes the lists of golden.json from the files alone" "$(golden_lists "$snapshot")"
asks "$TWOTOWER" topk "$root" --item i1 --k 299
why=
[ "$(wc -l <"$work/out")" -eq 299 ] || why="$(wc -l <"$work/out") lines"
! awk '{ print $3 }' "$work/out" | grep -qx i1 || why="the item is its own neighbour"
[ "$(awk '$2 > 1.00001 || $2 < -1.00001' "$work/out" | wc -l)" -eq 0 ] || why="no cosines"
verdict "topk --item lists all others by their cosine" "$why"
asks "$TWOTOWER" topk "$root" --user nobody
says 66 err "no user 'nobody'" "an unknown user is status 66"
asks "$TWOTOWER" topk "$root" --item nothing
says 66 err "no item 'nothing'" "an unknown item is status 66"
asks "$TWOTOWER" topk "$root" --user nobody --history i1,i2 --k 3
says 0 out "   3  " "an unknown user can be asked for with a history"
asks "$TWOTOWER" topk "$root" --history i1,nothing
says 66 err "no item 'nothing'" "a history of unknown items is status 66"
asks "$TWOTOWER" topk "$root"
says 64 err "--item, or --user" "topk without a question is status 64"
asks "$TWOTOWER" topk "$root" --item i1 --history i1
says 64 err "--item, or --user" "an item has no history"
asks "$TWOTOWER" topk "$root" --item i1 --k 0
says 64 err "--k" "topk of none is status 64"
asks "$TWOTOWER" topk "$root" --item i1 --rerank 20
says 64 err "--rerank is for a user" "an item has no second stage"
asks "$TWOTOWER" topk "$root" --user u1 --k 20 --rerank 19
says 64 err "--rerank 19" "fewer candidates than answers are status 64"
asks "$TWOTOWER" topk "$root" --user u1 --rerank 100
says 65 err "no light ranker" "a snapshot without a light ranker has no second stage"
asks "$TWOTOWER" topk "$work/one/state/final" --item i1
says 65 err "twotower-checkpoint" "a checkpoint is not for serving"

for encoder in none attention; do
    why=
    learns "classic_$encoder" -o model.type=two_tower -o model.hidden=16 -o "model.history_encoder=$encoder" ||
        why="status $status"
    root=$work/classic_$encoder/snapshots
    asks "$TWOTOWER" verify "$root"
    [ "$status" -eq 0 ] || why=${why:-$(cat "$work/err")}
    [ -n "$why" ] || why=$(golden_lists "$root/$(cut -d ' ' -f 1 "$root/LATEST")")
    verdict "the classic towers with history encoder $encoder are verified and asked as well" "$why"
done
why=
learns attention -o model.attention=2 -o model.dim=16 -o model.attention_gaps=true \
    -o model.attention_actions=true || why="status $status"
root=$work/attention/snapshots
asks "$TWOTOWER" verify "$root"
[ "$status" -eq 0 ] || why=${why:-$(cat "$work/err")}
[ -n "$why" ] || why=$(golden_lists "$root/$(cut -d ' ' -f 1 "$root/LATEST")")
verdict "the recipe with attention is verified and asked as well" "$why"
root=$work/one/snapshots

# ---- The light ranker

why=
learns ranked -o ranker.weight=1 -o value.tasks=click=1,save=3 || why="status $status: $(tail -n 1 "$work/err")"
root=$work/ranked/snapshots
asks "$TWOTOWER" verify "$root"
[ "$status" -eq 0 ] || why=${why:-$(cat "$work/err")}
[ -n "$why" ] || why=$(golden_lists "$root/$(cut -d ' ' -f 1 "$root/LATEST")")
verdict "a snapshot with a light ranker is verified, and retrieval is what it was" "$why"
asks "$TWOTOWER" inspect "$root"
says 0 out "heads 2, value of probability: 1 click, 3 save" "inspect says what the light ranker weighs"
asks "$TWOTOWER" topk "$root" --user u1 --k 100 --json
cp "$work/out" "$work/retrieved"
asks "$TWOTOWER" topk "$root" --user u1 --k 7 --rerank 100 --json
why=$(python3 - "$work/retrieved" "$work/out" 2>&1 <<'CHECK'
import json, sys
retrieved, found = (json.load(open(path))["items"] for path in sys.argv[1:])
assert len(found) == 7, len(found)
assert [a["rank"] for a in found] == list(range(1, 8))
values = [a["value"] for a in found]
assert values == sorted(values, reverse=True), values
assert [a["retrieved"] for a in found] != list(range(1, 8)), "the order is that of retrieval"
for a in found:
    first = retrieved[a["retrieved"] - 1]
    assert (first["row"], first["score"]) == (a["row"], a["score"]), (first, a)
    tasks = a["tasks"]
    assert list(tasks) == ["click", "save"] and all(0 < p < 1 for p in tasks.values()), a
    assert abs(tasks["click"] + 3 * tasks["save"] - a["value"]) < 1e-5, a
CHECK
) || true
verdict "topk --rerank orders retrieval's best by value, with both scores" "$(tail -n 1 <<<"$why")"
asks "$TWOTOWER" topk "$root" --user u1 --k 7 --rerank 100
verdict "topk --rerank prints value, then score" "$(awk '$2 > last && NR > 1 || NF < 4 { print; } { last = $2 }' "$work/out")"
asks "$TWOTOWER" topk "$root" --history i1,i2 --rerank 1000 --k 3
says 0 out "   3  " "a history alone can be asked in two stages, of all items at the most"

snapshot=$root/$(cut -d ' ' -f 1 "$root/LATEST")
forged manifest.json "manifest['ranker']['heads'] = 3"
says 65 err "light ranker" "a light ranker of another shape is status 65"
forged manifest.json "manifest['ranker']['tasks'][1]['weight'] = 'x'"
says 65 err "light ranker" "a task without a weight is status 65"
forged manifest.json "manifest['ranker']['value'] = 'logits'"
says 65 err "light ranker" "a form of value that is not served is status 65"
forged manifest.json "del manifest['ranker']"
says 65 err "light ranker" "a light ranker of which the manifest says nothing is status 65"
forged golden.json "i = data.index(b'\"value\":') + 10; data[i] = ord('8' if data[i] == ord('9') else '9')"
says 65 err "golden.json: user 1: the light ranker" "a golden value that does not come out is status 65"
forged dense_ranker_tasks.safetensors "data[4096 + 3] ^= 0x80; data[4096 + 7] ^= 0x80"
says 65 err "the light ranker" "other weights than those that learned are status 65"
asks python3 "$work/hostile.py" "$strict" "$snapshot" "$work/hurt"
[ "$status" -eq 0 ] || cat "$work/out" "$work/err"
verdict "no hostile light ranker stops verify, inspect or topk" "$([ "$status" -eq 0 ] || tail -n 1 "$work/out" "$work/err")"
root=$work/one/snapshots

# ---- What is not good does not leave

names() # ROOT: the generation that LATEST names
{
    cut -d ' ' -f 1 "$1/LATEST"
}
generations() # ROOT: how many are there
{
    find "$1" -mindepth 2 -maxdepth 2 -name manifest.json | wc -l
}
learns good -o eval.sampling=1 || says 0 err finished "a stream is learned to compare others with"
held=$work/good/snapshots
good=$(names "$held")
# refused SENTENCE TEXT OPTION...: the stream again, beside the snapshots of the good run.
refused()
{
    local sentence=$1 text=$2 why=
    shift 2
    learns bad -o eval.sampling=1 -o "snapshot.dir=$held" "$@"
    [ "$status" -eq 65 ] || why="status $status"
    grep -q "snapshot refused .*$text" "$work/err" || why="${why:-not in the log: $(tail -n 2 "$work/err")}"
    tail -n 1 "$work/err" | grep -qF "$text" || why="${why:-it ends with: $(tail -n 1 "$work/err")}"
    [ "$(names "$held") $(generations "$held")" = "$good 1" ] || why="${why:-a directory or LATEST has changed}"
    [ "$(generations "$work/bad/state/checkpoints")" -gt 0 ] || why="${why:-no checkpoint is left}"
    rm -rf "$work/bad"
    verdict "$sentence" "$why"
}
refused "towers that diverge are not published, and the status is 65" "the mean length of a row of" \
    -o model.rate=3
lie() # CHANGE: the good snapshot's manifest is another from here on
{
    python3 "$work/forge.py" "$held/$good" "$work/hurt" manifest.json "$1"
    cp "$work/hurt/manifest.json" "$held/$good/manifest.json"
}
cp "$held/$good/manifest.json" "$work/honest"
lie "manifest['metrics']['recall@100'] = 0.99"
refused "recall far below the last good snapshot's is not published" "recall@100 is"
asks "$TWOTOWER" snapshot list "$held"
says 0 out "0.9900" "the list shows what it was compared with"
cp "$work/honest" "$held/$good/manifest.json"
lie "manifest['items'] = 601"
refused "half of the items are not published" "300 items where the last good snapshot has 601"
cp "$work/honest" "$held/$good/manifest.json"
# Endless: nothing is published any more, and it goes on learning. Diverged towers do not come back; the
# first ones have learned less than the good one, which is no reason elsewhere.
"$TWOTOWER" run -o source.type=builtin -o source.users=500 -o source.catalogue=300 -o model.rate=3 \
    -o snapshot.guard_norm_jump=1 -o snapshot.interval=100ms -o "state.dir=$work/bad/state" -o "snapshot.dir=$held" \
    -o http.listen=127.0.0.1:19481 2>"$work/bad.log" &
daemon=$!
why=$(python3 - "$work/bad.log" 2>&1 <<'CHECK'
import json, re, sys, time, urllib.request


def get(path):
    with urllib.request.urlopen("http://127.0.0.1:19481" + path, timeout=5) as r:
        return r.read().decode()


def counted(name):
    return sum(float(v) for v in re.findall(rf"^twotower_{name} (\S+)$", get("/metrics"), re.M))


deadline = time.monotonic() + 60
while open(sys.argv[1]).read().count("cause=norm_jump") < 5:
    assert time.monotonic() < deadline, "it was not refused five times"
    time.sleep(0.05)
examples = counted(r'examples_total\{label="positive"\}')
assert counted(r'snapshot_refused_total\{reason="norm_jump"\}') >= 5, get("/metrics")
assert counted("snapshot_failures_total") == 0
time.sleep(0.5)
answer = json.loads(get("/readyz"))
check = next(c for c in answer["checks"] if c["name"] == "snapshot")
assert answer["ready"] and not check["ok"] and check["advisory"], answer
assert "refused since" in check["message"] and "norm_jump" in check["message"], answer
assert counted("ready") == 1
while counted(r'examples_total\{label="positive"\}') <= examples:
    assert time.monotonic() < deadline, "it does not learn any more"
    time.sleep(0.05)
CHECK
) || true
kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
[ -n "$why" ] || [ "$status" -eq 0 ] || why="it stopped with status $status"
[ "$(names "$held")" = "$good" ] || why="${why:-LATEST moved}"
verdict "a daemon whose snapshots are refused learns, counts, tells and stops as ever" "$(tail -n 1 <<<"$why")"
rm -rf "$work/bad"
lie "del manifest['norms']"
learns better -o "snapshot.dir=$held" -o model.rate=3
says 0 err "snapshot published" "an older snapshot without norms is nothing to compare with"

# ---- Which one the fleets take, while the daemon publishes

held=$work/live/snapshots
daemon=
daemon_start()
{
    "$TWOTOWER" run -o source.type=builtin -o source.users=500 -o source.catalogue=300 -o http.listen= \
        -o slice.interval=20ms -o "state.dir=$work/live/state" -o "snapshot.dir=$held" \
        -o snapshot.interval=150ms -o checkpoint.interval=150ms -o snapshot.keep=3 2>>"$work/live.log" &
    daemon=$!
}
published() # how many publications the daemon has told of
{
    grep -c 'snapshot published' "$work/live.log" 2>/dev/null
}
publishes() # N: waits for so many more
{
    local until=$(($(published) + $1)) i
    for ((i = 0; i < 600; i++)); do
        [ "$(published)" -lt "$until" ] || return 0
        sleep 0.05
    done
    return 1
}
daemon_killed()
{
    kill -KILL "$daemon" 2>/dev/null
    wait "$daemon" 2>/dev/null
}
served_last() # what the follower said last: "serving 17.., 300 items"
{
    tail -n 1 "$work/followed" | sed -n 's/^serving \([0-9]*\),.*/\1/p'
}
served() # PATTERN: waits until the last that is served is so
{
    local i
    for ((i = 0; i < 400; i++)); do
        # shellcheck disable=SC2053 # a pattern is meant
        [[ $(served_last) != $1 ]] || return 0
        sleep 0.05
    done
    return 1
}
follower=
trap 'kill -KILL $daemon $follower 2>/dev/null' EXIT
touch "$work/live.log"
daemon_start
publishes 3 || verdict "the daemon publishes" "$(tail -n 1 "$work/live.log")"
python3 deploy/examples/follow_snapshot.py "$held" 0.02 >"$work/followed" 2>"$work/followed.err" &
follower=$!
served '[1-9]*' || verdict "the Python example serves" "$(head -n 1 "$work/followed.err")"
publishes 2
asks "$TWOTOWER" snapshot rollback "$held"
says 0 out "twotower snapshot unpin $held" "rollback goes back while the daemon publishes, and says how to go on"
old=$(names "$held")
asks grep -xE "LATEST went back from [0-9]+ to $old, and is pinned there\." "$work/out"
verdict "rollback says from where to where" "$([ "$status" -eq 0 ] || cat "$work/out")"
why=
served "$old" || why="the follower serves $(served_last)"
publishes 5 || why="${why:-the daemon has stopped publishing}"
[ "$(names "$held")" = "$old" ] || why="${why:-LATEST moved to $(names "$held")}"
asks "$TWOTOWER" verify "$held/$old"
[ "$status" -eq 0 ] || why="${why:-$(cat "$work/err")}"
asks "$TWOTOWER" snapshot list "$held"
grep -qE "^ *$old .* LATEST  pinned$" "$work/out" || why="${why:-$(cat "$work/out")}"
[ "$(grep -c . "$work/out")" -le 6 ] || why="${why:-$(cat "$work/out")}" # one may be due to go
grep -q 'snapshot published.* pinned=elsewhere' "$work/live.log" || why="${why:-the log does not say it}"
verdict "five publications and retention leave the pinned snapshot and LATEST alone" "$why"
daemon_killed
daemon_start
why=
publishes 3 || why="the daemon does not publish again: $(tail -n 1 "$work/live.log")"
[ "$(names "$held")" = "$old" ] || why="${why:-LATEST moved to $(names "$held")}"
verdict "a daemon that was killed finds the pin when it is back" "$why"

# An operator's command that dies at any moment leaves a pointer to a whole snapshot, and no lock.
why=
for ((i = 0; i < 30; i++)); do
    if ((i % 2)); then act=(unpin "$held"); else act=(pin newest "$held"); fi
    "$TWOTOWER" snapshot "${act[@]}" >/dev/null 2>&1 &
    killed=$!
    sleep "0.00$((i % 10))"
    kill -KILL "$killed" 2>/dev/null
    wait "$killed" 2>/dev/null
    [ "$(published)" -gt 0 ] && "$TWOTOWER" verify "$held" >"$work/out" 2>"$work/err" ||
        why="${why:-after $i: $(head -n 1 "$work/err")}"
done
publishes 2 || why="${why:-the daemon does not publish any more}"
daemon_killed
verdict "killed in the middle, thirty times, pin and unpin leave LATEST whole and the daemon publishing" "$why"
daemon_start
why=
publishes 1 || why="the daemon does not publish again"
asks "$TWOTOWER" snapshot pin "$(find "$held" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n | tail -n 2 | head -n 1)" "$held"
[ "$status" -eq 0 ] || why="${why:-$(cat "$work/err")}"
pinned=$(names "$held")
publishes 2
served "$pinned" || why="${why:-pinned $pinned: $(tail -n 1 "$work/followed")}"
asks "$TWOTOWER" snapshot unpin "$held"
[ "$status" -eq 0 ] || why="${why:-$(cat "$work/err")}"
grep -q 'moves again with each publication' "$work/out" || why="${why:-$(cat "$work/out")}"
publishes 2
[ "$(names "$held")" -gt "$pinned" ] || why="${why:-LATEST stays at $pinned}"
verdict "pin by number and unpin: LATEST stays, then moves again" "$why"
kill -TERM "$daemon"
status=0
wait "$daemon" || status=$?
verdict "the daemon stops as ever" "$([ "$status" -eq 0 ] || echo "status $status")"
why=
served "$(names "$held")" || why="it ends with $(tail -n 1 "$work/followed")"
kill "$follower"
wait "$follower" 2>/dev/null
grep -q "serving $old," "$work/followed" || why="${why:-it never served $old}"
awk '$2 + 0 < last { back = 1 } { last = $2 + 0 } END { exit !back }' "$work/followed" || why="${why:-it never went back}"
[ ! -s "$work/followed.err" ] || why="${why:-$(head -n 1 "$work/followed.err")}"
verdict "the Python example follows LATEST, back as well" "$why"

# Without a daemon: mistakes, and what cannot be pointed at.
newest=$(names "$held")
asks "$TWOTOWER" snapshot pin 123 "$held"
says 66 err "123: cannot open" "a generation that is not there is status 66"
asks "$TWOTOWER" snapshot pin yesterday "$held"
says 64 err "not the number of a generation" "a word that is no generation is status 64"
asks "$TWOTOWER" snapshot rollback "$held" "$newest"
says 64 err "is not before it" "rollback does not go forward"
asks "$TWOTOWER" snapshot unpin "$held/$newest"
says 64 err "the directory of all is meant" "a snapshot is not the directory of all"
asks "$TWOTOWER" snapshot list "$work/empty"
says 66 err "no snapshot here" "an empty directory is status 66"
asks "$TWOTOWER" snapshot pin newest "$work/live/state/checkpoints"
says 65 err "not for the fleets" "a checkpoint is not for the fleets"
asks "$TWOTOWER" snapshot frobnicate "$held"
says 64 err "none of list, pin, rollback, unpin" "an unknown action is status 64"
asks "$TWOTOWER" snapshot pin "$held"
says 64 err "pin GENERATION|newest DIR" "a missing operand shows the form"
mapfile -t all < <(find "$held" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n)
before=${all[-2]}
printf x | dd of="$held/$before/user_emb.f32.safetensors" bs=1 seek=5000 conv=notrunc 2>/dev/null
asks "$TWOTOWER" snapshot pin "$before" "$held"
says 65 err "user_emb.f32.safetensors: bytes" "a damaged snapshot is not pinned"
asks "$TWOTOWER" snapshot rollback "$held" "$before"
says 65 err "user_emb.f32.safetensors: bytes" "nor rolled back to"
why=
[ "$(names "$held")" = "$newest" ] && [ ! -e "$held/PINNED" ] || why="LATEST or PINNED has changed"
verdict "what is refused leaves the pointer as it was" "$why"
asks "$TWOTOWER" snapshot rollback "$held"
why=
[ "$status" -eq 0 ] || why="status $status: $(cat "$work/err")"
grep -q 'passed over' "$work/err" || why="${why:-$(cat "$work/err")}"
[ "$(names "$held")" = "${all[-3]}" ] || why="${why:-LATEST names $(names "$held")}"
verdict "rollback without a number passes over what is damaged" "$why"
asks "$TWOTOWER" snapshot list --json "$held"
why=$(python3 - "$work/out" "${all[-3]}" 2>&1 <<'CHECK'
import json, sys
answer = json.load(open(sys.argv[1]))
named = [s["generation"] for s in answer["snapshots"] if s["latest"] and s["pinned"]]
assert answer["pinned"] is True and named == [int(sys.argv[2])], answer
assert all(s["whole"] and s["items"] > 200 for s in answer["snapshots"]), answer
CHECK
) || true
verdict "list --json is JSON" "$(tail -n 1 <<<"$why")"
while [ "$status" -eq 0 ]; do asks "$TWOTOWER" snapshot rollback "$held"; done
says 66 err "no whole snapshot before" "before the first one there is none"
asks "$TWOTOWER" snapshot unpin "$held"
verdict "unpin goes to the newest" "$([ "$status" -eq 0 ] && [ "$(names "$held")" = "$newest" ] || cat "$work/err")"

# ---- The examples for readers in C, against the library as it is installed

build=$(dirname "$TWOTOWER")
if [ ! -f "$build/cmake_install.cmake" ]; then
    echo "skip the C example reads a snapshot: $build is not a build directory of CMake"
elif ! cmake --install "$build" --prefix "$work/installed" >"$work/install.log" 2>&1; then
    verdict "the C example reads a snapshot" "$(tail -n 1 "$work/install.log")"
else
    PKG_CONFIG_PATH=$(dirname "$(find "$work/installed" -name twotower_reader.pc)")
    export PKG_CONFIG_PATH
    flags=$(pkg-config --define-variable=prefix="$work/installed" --cflags --libs twotower_reader)
    libdir=$(pkg-config --define-variable=prefix="$work/installed" --variable=libdir twotower_reader)
    # shellcheck disable=SC2086 # flags are words
    asks gcc -Wall -Wextra -Werror deploy/examples/read_snapshot.c -o "$work/read_snapshot" $flags
    [ "$status" -ne 0 ] || asks env LD_LIBRARY_PATH="$libdir" "$work/read_snapshot" "$root" i1
    says 0 out "snapshot $generation, best for i1" "the C example reads a snapshot with the installed library"
    # shellcheck disable=SC2086 # flags are words
    asks gcc -Wall -Wextra -Werror deploy/examples/follow_snapshot.c -o "$work/follow_snapshot" $flags
    why=$(head -n 1 "$work/err")
    env LD_LIBRARY_PATH="$libdir" "$work/follow_snapshot" "$held" 0.02 >"$work/followed" 2>&1 &
    follower=$!
    served "$newest" || why="${why:-it serves: $(tail -n 1 "$work/followed")}"
    "$TWOTOWER" snapshot rollback "$held" "${all[0]}" >/dev/null
    served "${all[0]}" || why="${why:-it serves: $(tail -n 1 "$work/followed")}"
    "$TWOTOWER" snapshot unpin "$held" >/dev/null
    served "$newest" || why="${why:-it serves: $(tail -n 1 "$work/followed")}"
    kill "$follower"
    verdict "the second C example follows LATEST back and forth" "$why"
fi

exit "$failed"
