#!/bin/bash
# One rank fails, is asked to leave, or would train something else, where the others wait in something else: all leave with one
# message, and --resume goes on. For a full disk one rank may write only short files (ulimit -f); for what it cannot read, and for
# what its host has otherwise, it is given other settings. Ranks that are killed or stand still: ranks.sh.
. "$(dirname "$0")/../lib.sh"
needs_ranks "ranks_leave"
export GRAFT_RANK_DEADLINE=30
cd "$WORK" || exit 1
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}
data: {train: t.jsonl, eval: e.jsonl, max_length: 128, cache: cache}
train: {max_steps: 12, batch_size: 8, learning_rate: 1.0e-3}
eval: {every: 4}
save: {every: 4}
log: {every: 1}
Y
counting 96 t.jsonl
head -n 12 t.jsonl >e.jsonl
# What a rank is started by: rank ODD may write files of BLOCKS KiB, and has the settings SETS.
cat >rank.sh <<'W'
[ "$OMPI_COMM_WORLD_RANK" = "$ODD" ] || exec "$@"
trap '' XFSZ
ulimit -f "$BLOCKS"
exec "$@" $SETS
W
export ODD=-1 BLOCKS=unlimited SETS=
# run FOLDER [OPTION...]: by four ranks to the end: $code, said.txt, err.txt. ODD, BLOCKS, SETS: of the one that is odd.
run() {
    local dir=$1
    shift
    env -u SHELLOPTS timeout 100 mpirun -n 4 bash rank.sh "$GRAFT" train r.yaml output_dir="$dir" "$@" \
        >said.txt 2>err.txt </dev/null
    code=$?
}
# fails NAME WORDS: the last run has failed before the deadline of those that wait, and says so once, with these words.
fails() {
    if [ $code != 0 ] && [ $code != 124 ] && [ "$(grep -c '^graft: ' err.txt)" = 1 ] &&
        grep -qE -- "^graft: error: $2" err.txt; then
        ok "$1"
    else not_ok "$1" "code $code, or it is not told once" err.txt; fi
}
weights=adapter/adapter_model.safetensors
run reference
check "a run that nobody disturbs" test $code = 0

# ---- what only one meets ----
ODD=0 BLOCKS=16 run disk
fails "no room for a checkpoint" "rank 0 \([^ ]+\), the checkpoint of step 4: writing disk/checkpoint-4\.tmp-.*: File too large"
check "it is not there in part" test ! -e disk/checkpoint-4
run disk --resume
check "with room again it goes on to the same weights" same reference/$weights disk/$weights
ODD=3 BLOCKS=64 run part adapter.method=full train.sharding=zero3
fails "no room for one rank's part of it" "rank 3 \([^ ]+\), the .* of step 4: writing part/checkpoint-4\.tmp-.*: File too large"
check "nor is that there in part" test ! -e part/checkpoint-4
ODD=2 SETS=data.eval=none.jsonl run unread
fails "a file that one rank does not see" "rank 2 \(.*\): none.jsonl: no such file"
ODD=1 SETS=model.base=/nowhere run nomodel
fails "a model that one rank does not see" "rank 1 \(.*\): /nowhere: no such model"
run infinite train.learning_rate=1e30
fails "a loss or gradient that is not finite" "step 2: .* is not finite; nothing was updated"

# ---- what differs ----
# differs RANK SETTING WORDS
differs() {
    ODD=$1 SETS=$2 run differs
    fails "$2 at rank $1" "$3: all ranks must train the same"
}
differs 2 train.batch_size=4 'rank 2 \(.*\): train.batch_size: 4 here, 8 at rank 0'
differs 0 train.seed=7 'rank 1 \(.*\): train.seed: 42 here, 7 at rank 0'
differs 3 data.train=e.jsonl 'rank 3 \(.*\): tokens of data.train: 1275 here, 10177 at rank 0'
differs 1 data.eval=t.jsonl 'rank 1 \(.*\): tokens of data.eval: 10177 here, 1275 at rank 0'
sed '1s/count 1/count 2/' t.jsonl >other.jsonl
cp -r "$TINY" base
printf '\x11' | dd of=base/model.safetensors bs=1 seek=$(($(stat -c %s base/model.safetensors) - 9)) conv=notrunc status=none
differs 2 model.base=base 'rank 2 \(.*\): model.base, by a hash: [0-9]+ here, [0-9]+ at rank 0'
differs 3 adapter.init_from=reference \
    "rank 3 \(.*\): the adapter's first values \(adapter.init_from\), by a hash: [0-9]+ here, [0-9]+ at rank 0"
differs 1 data.train=other.jsonl 'rank 1 \(.*\): data.train, by a hash: [0-9]+ here, [0-9]+ at rank 0'
cp -r cache cache2
ODD=1 SETS="data.cache=cache2 threads=1" run own
check "a cache and threads of its own are a host's affair" same reference/$weights own/$weights

# ---- asked to leave in the middle of an evaluation ----
# asked RANK FOLDER [OPTION...]: they save, and say what is true.
asked() {
    local rank=$1 dir=$2 p said
    shift 2
    env -u SHELLOPTS mpirun -n 4 "$GRAFT" train r.yaml output_dir="$dir" train.max_steps=40 eval.every=1 save.every=1000 \
        data.eval=t.jsonl "eval.metrics=[loss, exact_match]" "$@" >said.txt 2>err.txt </dev/null &
    job=$!
    while ! grep -qs '"step": *3[,}]' "$dir/metrics.jsonl" && kill -0 $job 2>/dev/null; do sleep 0.05; done
    sleep 0.1 # the step takes a hundredth of its evaluation
    for p in $(pgrep -P $job); do
        if tr '\0' '\n' <"/proc/$p/environ" | grep -x "OMPI_COMM_WORLD_RANK=$rank" >/dev/null; then kill -TERM "$p"; fi
    done
    wait $job
    check "rank $rank is asked in an evaluation: told once" test "$(grep -c '^graft: interrupted: at step' err.txt)" = 1
    said=$(sed -n 's/^graft: interrupted: .* saved in \(.*\): continue.*/\1/p' err.txt)
    check "and what it says is saved is there" test -s "$said/state.h5"
}
asked 2 asked2
asked 0 asked0
asked 3 asked3 adapter.method=full train.sharding=zero3
finish
