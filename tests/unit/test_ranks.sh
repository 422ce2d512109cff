#!/bin/bash
# Runs on several ranks: what they say to each other, who is named when one is lost, and that they train what one rank trains.
. "$(dirname "$0")/../lib.sh"
needs_ranks "ranks"
ranks() { # ranks N COMMAND...
    local n=$1
    shift
    env -u SHELLOPTS timeout 120 mpirun -n "$n" "$@"
}
cd "$WORK" || exit 1

# ---- what they say ----
ranks 8 "$BUILD/tests/ranks" exchange >said.txt 2>err.txt
check "pieces of all sizes come to whom they are for" test "$(grep -c ' 0 wrong' said.txt)" = 8
ranks 8 "$BUILD/tests/ranks" disagree 3 >/dev/null 2>err.txt
check "one that fails takes all with it" test $? != 0
check "and is named by the seven others" test "$(grep -c '^rank 3 (.*): no milk' err.txt)" = 7
ranks 8 "$BUILD/tests/ranks" die 5 >/dev/null 2>err.txt
check "one that is killed is named" grep -q '^rank 5 (.*) is gone, seen by rank . in going on of step 5' err.txt
ranks 8 "$BUILD/tests/ranks" stop 2 >/dev/null 2>err.txt
check "one that stands still is named" grep -q '^rank 2 (.*) was not heard of for 3 s, seen by rank . in going on of step 5' err.txt
pkill -KILL -f "$BUILD/tests/ranks stop 2"
ranks 8 "$BUILD/tests/ranks" silent 2 >/dev/null 2>err.txt
check "it is that one also for those who are ahead" test "$(grep -c '^rank [^2] (.*) was not heard of' err.txt)" = 0
check "who say so" grep -q '^rank 2 (.*) was not heard of for 3 s' err.txt
ranks 8 "$BUILD/tests/ranks" leave 6 >/dev/null 2>err.txt
check "one that fails while the others exchange is heard" test "$(grep -c '^rank 6 (.*): no milk' err.txt)" -gt 1
check "and no one takes it for lost" test "$(grep -cE 'is gone|not heard of' err.txt)" = 0
GRAFT_MPI_LIB=/nowhere ranks 2 "$BUILD/tests/ranks" exchange >/dev/null 2>err.txt
check "without MPI's library it does not train twice" grep -q 'started as one of several ranks' err.txt

refused "another MPI than that of mpirun knows of no others" 2 "one of 2 ranks, and the MPI of libgraft_mpi.so knows of 1" \
    env PMI_RANK=1 PMI_SIZE=2 "$GRAFT" train "$TINY/none.yaml"
refused "nor does srun without PMIx" 2 "one of 2 ranks: srun has started them so that they cannot find each other" \
    env SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=2 "$GRAFT" train "$TINY/none.yaml"
refused "a deadline is a number" 2 'GRAFT_RANK_DEADLINE is "soon": expected a positive number of seconds' \
    env GRAFT_RANK_DEADLINE=soon "$GRAFT" train "$TINY/none.yaml"
refused "above 0" 2 'GRAFT_RANK_DEADLINE is "-1"' env GRAFT_RANK_DEADLINE=-1 "$GRAFT" train "$TINY/none.yaml"

# ---- what they train ----
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj, down_proj], dropout: 0.1}
data: {train: t.jsonl, eval: e.jsonl, max_length: 128, cache: none}
train: {max_steps: 30, batch_size: 16, learning_rate: 3.0e-3}
eval: {every: 10}
log: {every: 1}
output_dir: run
Y
counting 150 t.jsonl
head -n 20 t.jsonl >e.jsonl
"$GRAFT" train r.yaml output_dir=one threads=1 >/dev/null 2>one.log
for n in 2 8; do ranks $n "$GRAFT" train r.yaml output_dir=on$n >said.txt 2>on$n.log; done
check "eight once more, their data made and read on disk" ranks 8 "$GRAFT" train r.yaml output_dir=again data.cache=cache
check "which is one folder for train and one for eval" test "$(ls cache/*.tokens/index.h5 | wc -l)" = 2
check "made once: the second run finds it" ranks 8 "$GRAFT" train r.yaml output_dir=found data.cache=cache
check "and says so" grep -q 'from the cache' found/run.log
check "it trains the same" same on8/adapter/adapter_model.safetensors found/adapter/adapter_model.safetensors
shard=$(ls -S cache/*.tokens/shard-000000.h5 | sed -n 1p) # of train: ids are most of it
printf '\x7f\x7f\x7f' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") / 2)) conv=notrunc 2>/dev/null
ranks 8 "$GRAFT" train r.yaml output_dir=damaged data.cache=cache >/dev/null 2>err.txt
check "damage is met when it is read, and ends all" test $? != 0
check "and is named" grep -q 'shard-000000.h5: the tokens from [0-9]* on do not match their checksum; start again' err.txt
check "the next run makes it again" ranks 8 "$GRAFT" train r.yaml output_dir=mended data.cache=cache
check "and trains the same" same on8/adapter/adapter_model.safetensors mended/adapter/adapter_model.safetensors
GRAFT_RANK_LOG=1 ranks 2 "$GRAFT" train r.yaml output_dir=logs train.max_steps=2 >/dev/null 2>err.txt
check "a log of another rank, where it is asked for" grep -q '^finished .* at step 2 of 2' logs/ranks/rank-1.log
check "with who it is" grep -q '^ranks: 2, 2 of them on this host; this is rank 1' logs/ranks/rank-1.log
GRAFT_RANK_LOG=1 ranks 2 "$GRAFT" train r.yaml output_dir=logs --overwrite train.max_steps=2 threads=1 >/dev/null 2>err.txt
check "once more" test -s logs/ranks/rank-1.log
ranks 2 "$GRAFT" train r.yaml output_dir=logs --overwrite train.max_steps=2 >/dev/null 2>err.txt
check "and an older run's goes with it" test ! -e logs/ranks
# what all ranks meet before they have come together, and what needs no ranks
ranks 3 "$GRAFT" train r.yaml --bogus >/dev/null 2>err.txt
check "a wrong option is told once" test "$(grep -c '^graft: error: ' err.txt)" = 1
GRAFT_MPI_LIB=/nonexistent ranks 3 "$GRAFT" train r.yaml output_dir=no >/dev/null 2>err.txt
check "and so is a library that is not there" test "$(grep -c '^graft: error: .*libgraft_mpi.so is needed' err.txt)" = 1
ranks 3 "$GRAFT" train r.yaml --dry-run >dry.txt 2>err.txt
check "a dry run is of all ranks" test "$(grep -c '^ranks  *3, sharding none' dry.txt)" = 1
ranks 3 "$GRAFT" eval --model "$TINY" --data e.jsonl >each.txt 2>err.txt
check "another command is run by each rank" test "$(grep -c '^loss' each.txt)" = 3
check "and that is said, once" test "$(grep -c '^graft: started 3 times: each does all of graft eval by itself' err.txt)" = 1
losses() { jq -c '[.step, .loss // .eval_loss, .num_tokens]' "$1/metrics.jsonl"; }
close() { # close RUN RUN: the same rows, losses within the rounding of sums
    jq -n --slurpfile a <(losses "$1") --slurpfile b <(losses "$2") '($a | length) == 33 and ($b | length) == 33 and
        all(range(33); $a[.][0] == $b[.][0] and $a[.][2] == $b[.][2] and ($a[.][1] - $b[.][1] | fabs) < 1e-6)' | grep -x true
}
check "two ranks train what one does" close one on2
check "and so do eight" close one on8
check "eight again: the same bits" same on8/adapter/adapter_model.safetensors again/adapter/adapter_model.safetensors
check "one of them tells the result" test "$(grep -c '^final loss' said.txt)" = 1
# what is gone on from lies in one folder for all
constant=(train.max_steps=4 train.lr_scheduler=constant output_dir=/proc/self/cwd/run)
for i in 0 1; do mkdir d$i && cp r.yaml [te].jsonl d$i; done
(cd d0 && "$GRAFT" train r.yaml "${constant[@]}") >/dev/null 2>err.txt
(cd d1 && ranks 3 "$GRAFT" train r.yaml "${constant[@]}") >/dev/null 2>err.txt
# shellcheck disable=SC2016
ranks 2 sh -c 'cd "d$OMPI_COMM_WORLD_RANK" && exec "$@"' - "$GRAFT" train r.yaml "${constant[@]}" train.max_steps=6 --resume \
    >/dev/null 2>err.txt
check "another checkpoint of the same step is refused" grep -q 'its checkpoint of step 4 is not the one of rank 0' err.txt
# answers that are right and wrong, in shares of ranks, and whole where ranks bring each other weights
for i in $(seq 1 40); do
    printf '{"prompt": "count %d", "completion": "%s"}\n' "$i" "$([ $((i % 3)) = 0 ] && echo no || echo yes)"
done >yes.jsonl
matched() { jq -c '.eval_exact_match // empty' "$1/metrics.jsonl"; }
settings=(data.train=yes.jsonl data.eval=yes.jsonl train.learning_rate=2e-2 'eval.metrics=[loss,exact_match]' eval.every=15)
"$GRAFT" train r.yaml output_dir=match1 "${settings[@]}" >/dev/null 2>err.txt
check "one rank is right where the answer is yes" test "$(matched match1 | tail -n 1)" = 0.675
for way in none zero3; do
    ranks 3 "$GRAFT" train r.yaml output_dir=match3 --overwrite train.sharding=$way "${settings[@]}" >/dev/null 2>err.txt
    check "three ranks, sharding $way, find that too" test "$(matched match3)" = "$(matched match1)"
done
{ head -n 3 t.jsonl; printf '{"prompt": 7}\n'; } >bad.jsonl
ranks 4 "$GRAFT" train r.yaml output_dir=bad data.train=bad.jsonl >/dev/null 2>err.txt
check "bad data is told once" test "$(grep -c 'graft: error: .*bad.jsonl' err.txt)" = 1
finish
