#!/bin/bash
# One rank fails, or is asked to leave, at every place where the others may wait in something else: all leave with one message, and
# none stays behind; --resume goes on. For a full disk one rank may write only short files (ulimit -f), for files that it cannot
# read it is given another name of them: as on a host that does not see the same folders.
. "$(dirname "$0")/../lib.sh"
if [ ! -e "$BUILD/libgraft_mpi.so" ] || ! command -v mpirun >/dev/null; then
    echo "skip ranks_leave: needs a build with MPI, and mpirun (Debian: libopenmpi-dev, openmpi-bin)"
    exit 77
fi
export GRAFT_MPI_LIB=$BUILD/libgraft_mpi.so OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_odls_base_sigkill_timeout=60
export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 GRAFT_RANK_DEADLINE=20
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
for i in $(seq 1 96); do
    printf '{"prompt": "count %d: %s", "completion": "%s"}\n' "$i" "$(yes ab | head -n $((i * 7 % 13 + 1)) | tr '\n' ' ')" \
        "$(yes cd | head -n $((i * 5 % 11 + 1)) | tr '\n' ' ')"
done >t.jsonl
head -n 12 t.jsonl >e.jsonl
full=(adapter.method=full train.weights=fp32)
ODD=-1 ODD_BLOCKS=unlimited ODD_BYTES=unlimited ODD_SETS=
# What a rank is started by: rank ODD with what is set for it.
cat >rank.sh <<'W'
if [ "$OMPI_COMM_WORLD_RANK" = "$ODD" ]; then
    trap '' XFSZ
    ulimit -f "$ODD_BLOCKS"
    ulimit -v "$ODD_BYTES"
    exec "$@" $ODD_SETS
fi
exec "$@"
W
# run NAME [OPTION...]: by four ranks to the end: $code, $took seconds, said.txt, err.txt
run() {
    local dir=$1 began=$SECONDS
    shift
    export ODD ODD_BLOCKS ODD_BYTES ODD_SETS
    env -u SHELLOPTS timeout 100 mpirun -n 4 bash rank.sh "$GRAFT" train r.yaml output_dir="$dir" "$@" >said.txt 2>err.txt </dev/null
    code=$? took=$((SECONDS - began))
    ODD=-1 ODD_BLOCKS=unlimited ODD_BYTES=unlimited ODD_SETS=
}
# fails NAME WORDS: the last run has failed at once, and says so once with these words.
fails() {
    if [ "$code" != 0 ] && [ "$code" != 124 ] && [ "$took" -lt 18 ] && [ "$(grep -c '^graft: ' err.txt)" = 1 ] &&
        grep -qE -- "^graft: (error: )?$2" err.txt; then
        ok "$1"
    else not_ok "$1" "code $code after $took s, or it is not told once" err.txt; fi
}
goes_on() { # goes_on NAME FOLDER [OPTION...]: resumed, it ends as the run that nobody disturbed
    local name=$1 dir=$2
    shift 2
    run "$dir" --resume "$@"
    check "$name: it goes on" test "$code" = 0
}
