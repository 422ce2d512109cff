#!/bin/bash
# Ranks that die, hang or meet bad data: the others name one (rank, host, operation, step) within a deadline, all leave with one
# message, nothing half-written stays, and --resume goes on: on as many ranks with the bits of the run that was not disturbed, on
# half of them with its losses. Likewise after a signal.
#
#   tests/fault/ranks.sh          some of each, for every build
#   tests/fault/ranks.sh all      20 random moments of each (RANKS_SEED=N: others)
#
# mpirun (Open MPI) ends all ranks when one has left with a failure, or when it is interrupted: by SIGTERM, and after
# odls_base_sigkill_timeout (1 s) by SIGKILL; it waits for all of that time. A little more of it here lets ranks tell what they
# saw on a machine that is busy.
. "$(dirname "$0")/../lib.sh"
needs_ranks "ranks"
export OMPI_MCA_odls_base_sigkill_timeout=3 GRAFT_RANK_DEADLINE=5
times=1
[ "${1:-}" = all ] && times=20
RANDOM=${RANKS_SEED:-14}
cd "$WORK" || exit 1
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {method: full}
data: {train: t.jsonl, eval: e.jsonl, max_length: 128, shuffle: false}
train: {max_steps: 60, batch_size: 16, learning_rate: 3.0e-4, sharding: zero2, weights: bf16}
eval: {every: 30}
save: {every: 5, save_total_limit: 3}
log: {every: 1}
Y
awk 'function words(word, n,   text) { while (n-- > 0) text = text word " "; return text }
    BEGIN { for (i = 1; i <= 960; i++) {
        printf "{\"prompt\": \"count %d: %s\", ", i, words("ab", i * 7 % 23 + 1)
        printf "\"completion\": \"%s\"}\n", words("cd", i * 5 % 21 + 1) } }' >t.jsonl
head -n 20 t.jsonl >e.jsonl

ranks() { # ranks N FOLDER [OPTION...]: a run to its end
    local n=$1 dir=$2
    shift 2
    env -u SHELLOPTS timeout 300 mpirun -n "$n" "$GRAFT" train r.yaml output_dir="$dir" data.cache="$dir.cache" "$@" \
        >said.txt 2>err.txt </dev/null
}
begin() { # begin FOLDER [OPTION...]: the same on 8 in the background: $job
    local dir=$1
    shift
    : >err.txt
    env -u SHELLOPTS mpirun -n 8 "$GRAFT" train r.yaml output_dir="$dir" data.cache="$dir.cache" "$@" \
        >said.txt 2>err.txt </dev/null &
    job=$!
}
# The process of a rank of $job.
process_of() {
    local p
    for p in $(pgrep -P "$job"); do
        if { tr '\0' '\n' <"/proc/$p/environ"; } 2>/dev/null | grep -x "OMPI_COMM_WORLD_RANK=$1" >/dev/null; then echo "$p"; fi
    done
}
now() { date +%s%N; }
pause() { sleep "$(($1 / 1000)).$(printf %03d $(($1 % 1000)))"; } # milliseconds
until_data() { # $job has said what data it has: the ranks have come together
    until [ -s err.txt ]; do
        kill -0 "$job" 2>/dev/null || return 1
        sleep 0.02
    done
}
losses() { jq -c '[.step, .loss // .eval_loss, .num_tokens]' "$1/metrics.jsonl"; }
close() { # close RUN RUN: the same rows, losses within the rounding of sums
    jq -n --slurpfile a <(losses "$1") --slurpfile b <(losses "$2") '($a | length) == 62 and ($b | length) == 62 and
        all(range(62); $a[.][0] == $b[.][0] and $a[.][2] == $b[.][2] and ($a[.][1] - $b[.][1] | fabs) < 1e-4)' | grep -x true
}
told_once() { [ "$(grep -c '^graft: ' err.txt)" = 1 ] && grep -qE -- "$1" err.txt; }
# Nothing but checkpoints that are due (or of a step that was asked for) and no unfinished folder after the run has gone on.
whole() {
    local left
    left=$(find "$1" -name '*.tmp-*')
    [ -z "$left" ] || { echo "left $left"; return 1; }
}
due_alone() {
    ! ls -d "$1"/checkpoint-* 2>/dev/null | grep -v tmp- | sed 's/.*-//' |
        awk '$1 % 5 != 0 { bad = 1 } END { exit !bad }'
}

begin reference
until_data
started=$(now)
wait $job
check "a run that nobody disturbs" test $? = 0
took=$((($(now) - started) / 1000000)) # ms
weights=model/model.safetensors

# goes_on NAME FOLDER: --resume on 8 has the reference's bits, on 4 its losses.
goes_on() {
    cp -r "$2" "$2.half"
    ranks 8 "$2" --resume
    check "$1: resumed, the bits of the run that was not disturbed" same "$2/$weights" reference/$weights
    check "$1: and nothing unfinished is left" whole "$2"
    ranks 4 "$2.half" --resume
    check "$1: resumed by four, its losses" close reference "$2.half"
    rm -rf "$2" "$2.half" "$2.cache" "$2.half.cache"
}

# hurt SIGNAL WORDS N: at a random moment one rank gets it.
hurt() {
    local name dir=run rank pid at ended code
    while true; do # until the moment lies within the run
        rank=$((RANDOM % 8)) at=$(((RANDOM * 32768 + RANDOM) % took))
        name="$1 to rank $rank after $at ms"
        begin $dir
        until_data
        pause $at
        pid=$(process_of $rank)
        [ -n "$pid" ] && kill -"$1" "$pid" 2>/dev/null && break
        wait "$job"
        rm -rf $dir $dir.cache
    done
    at=$(now)
    wait "$job"
    code=$?
    ended=$((($(now) - at) / 1000000))
    if [ $code = 0 ] || { ! grep '^graft: ' err.txt >/dev/null && grep -x 'status: finished' $dir/.graft >/dev/null; }; then
        # it came too late: the rank had nothing left to do but to leave MPI
        check "$name: the run was over" test -s $dir/$weights
        rm -rf $dir $dir.cache
        return
    fi
    if told_once "^graft: error: rank $rank \([^ ]+, process $pid\) $2, seen by rank [0-7] in [a-z' ]+( of step [0-9]+)?\$"; then
        ok "$name: $(sed -n 's/^graft: error: //p' err.txt), $ended ms"
    else not_ok "$name" "it is not named, or not once" err.txt; fi
    check "$name: within 30 s" test $ended -lt 30000
    check "$name: nothing was saved because of it" due_alone $dir
    goes_on "$name" $dir
}
for _ in $(seq $times); do hurt KILL 'is gone'; done
for _ in $(seq $times); do hurt STOP '(was not heard of|has done nothing) for 5 s'; done

# spoil: a byte of the tokens that are read from the cache changes; some rank meets it when it reads them.
spoil() {
    local dir=run shard size at code name
    begin $dir train.max_steps=1 save.every=1
    wait "$job"
    rm -rf $dir
    shard=$(echo $dir.cache/*.tokens/shard-000000.h5)
    for one in $dir.cache/*.tokens/shard-000000.h5; do
        [ "$(stat -c %s "$one")" -gt "$(stat -c %s "${shard%% *}")" ] && shard=$one # that of training is the larger one
    done
    shard=${shard%% *} size=$(stat -c %s "${shard%% *}")
    at=$((8192 + (RANDOM * 32768 + RANDOM) % (size / 2)))
    printf '\x7f\x7f\x7f\x7f' | dd of="$shard" bs=1 seek=$at conv=notrunc status=none
    name="tokens spoilt at $at of $size"
    at=$(now)
    begin $dir
    wait "$job"
    code=$?
    at=$((($(now) - at) / 1000000))
    if [ $code != 0 ] && told_once "^graft: error: rank [0-7] \([^ ]+\), the samples of step [0-9]+: [^ ]*shard-000000.h5"; then
        ok "$name: $(sed -n 's/^graft: error: //p' err.txt)"
    else not_ok "$name" "code $code, or it is not named once" err.txt; fi
    check "$name: within 30 s" test $at -lt 30000
    goes_on "$name" $dir
}
for _ in $(seq $times); do spoil; done

# ---- asked to leave ----
# asked NAME SIGNAL WHO: who is mpirun, or a rank: all of them save. SIGTERM has mpirun wait, signal all, and wait once more.
asked() {
    local dir=run to rows=$((5 + RANDOM % 15)) OMPI_MCA_odls_base_sigkill_timeout=1
    begin $dir
    until [ "$(cat $dir/metrics.jsonl 2>/dev/null | wc -l)" -ge $rows ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.02; done
    to=$job
    [ "$3" = mpirun ] || to=$(process_of "$3")
    kill -"$2" "$to"
    wait "$job"
    check "$1: it fails" test $? != 0
    if told_once '^graft: interrupted: at step [0-9]+ of 60, saved in '; then ok "$1: told once"
    else not_ok "$1: told once" "it is not, or more than once" err.txt; fi
    check "$1: saved" test -s "$(sed -n 's/.*saved in \(.*\): continue.*/\1/p' err.txt)/state.h5"
    goes_on "$1" $dir
}
asked "SIGUSR1 to mpirun" USR1 mpirun
if [ $times != 1 ]; then
    asked "mpirun interrupted" TERM mpirun
    asked "SIGTERM to rank 0" TERM 0
    asked "SIGTERM to another rank" TERM 5
fi
finish
