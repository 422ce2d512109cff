#!/bin/bash
# Checkpoints of ranks that keep shares: a file of each, read by any number of ranks; one that is missing, damaged or of another
# checkpoint is named, and the checkpoint passed over.
. "$(dirname "$0")/../lib.sh"
needs_ranks "checkpoints of ranks"
cd "$WORK" || exit 1
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {method: full}
data: {train: $TINY/train.jsonl, cache: none}
train: {max_steps: 6, batch_size: 8, learning_rate: 3.0e-4, weights: bf16, sharding: zero2}
save: {every: 2, save_total_limit: 9}
log: {every: 1}
Y
train() { # train RANKS FOLDER [OPTION ...]
    local n=$1 out=$2
    shift 2
    if [ "$n" = 1 ]; then "$GRAFT" train r.yaml output_dir="$out" threads=1 "$@"; else
        env -u SHELLOPTS timeout 120 mpirun -n "$n" "$GRAFT" train r.yaml output_dir="$out" "$@"
    fi
}
losses() { jq -c '[.step, .loss]' "$1/metrics.jsonl"; }
close() { # close RUN RUN
    jq -n --slurpfile a <(losses "$1") --slurpfile b <(losses "$2") '($a | length) == 6 and ($b | length) == 6 and
        all(range(6); $a[.][0] == $b[.][0] and ($a[.][1] - $b[.][1] | fabs) < 1e-5)' | grep -x true
}
check "eight ranks" train 8 eight
files=$(printf 'state-%d-of-8.h5\n' 0 1 2 3 4 5 6 7 && echo state.h5)
check "each has written its file" test "$(ls eight/checkpoint-4)" = "$files"
whole=$(stat -c %s eight/checkpoint-4/state-?-of-8.h5 | sort -n | tail -n 1)
check "none of them holds much more than its share" test $((whole * 6)) -lt "$(cat eight/checkpoint-4/*.h5 | wc -c)"
take() { rm -rf "$2" && cp -r "$1" "$2" && rm -rf "$2"/checkpoint-[56] "$2/model"; } # take FROM TO: as it was after step 4
take eight again
check "eight go on" train 8 again --resume
check "with the same bits" same eight/model/model.safetensors again/model/model.safetensors
for n in 4 2 1; do
    take eight on$n
    check "$n go on" train $n on$n --resume
    check "to what eight come to" close eight on$n
done
check "one rank from the beginning" train 1 one
take one back
check "eight go on from one rank's" train 8 back --resume
check "to what one comes to" close one back
take eight bad && rm bad/checkpoint-4/state-3-of-8.h5
train 2 bad --resume >said.txt 2>&1
check "a file that is missing is named" grep -q 'state-3-of-8.h5.*passed over' said.txt
check "and the checkpoint before it is taken" grep -q 'resuming from bad/checkpoint-2' said.txt
take eight bad && truncate -s -1 bad/checkpoint-4/state-5-of-8.h5
train 2 bad --resume >said.txt 2>&1
check "one that is truncated, too" grep -q 'state-5-of-8.h5.*passed over' said.txt
take eight bad && cp eight/checkpoint-2/state-1-of-8.h5 bad/checkpoint-4/
train 2 bad --resume >said.txt 2>&1
check "one of another checkpoint, too" grep -q 'state-1-of-8.h5: is not the file that was written with its state.h5' said.txt
finish
