#!/bin/bash
# cuda_sweep - the CUDA backend in every way that the emulator has: each test of kernels and model, plain and checked, on cards of
# 9.0 and 8.0, threads in order, backwards and mixed, copies late and at once; the planted faults; scripts that run the program.
# Hours on two cores; run before work on the backend is closed. CI runs what test_cuda.sh and its siblings have.
#
#   tests/unit/cuda_sweep.sh [--out FOLDER] [FILTER]    FILTER: an expression for names of parts, as `test_ops.*checked`
#
# Parts that passed with this build are not run again: --out (build/cuda-sweep) keeps what was said. The last line counts.
set -uo pipefail
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) BUILD=$(cd "${BUILD:-$SOURCE/build/gcc}" && pwd) || exit 2
emulator=${GRAFT_EMULATOR:-$SOURCE/../shared/cudaemu/run} out=$BUILD/cuda-sweep
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=$2 && shift 2 ;;
    -*) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
    *) break ;;
    esac
done
filter=${1:-.}
for f in "$emulator" "$BUILD/libgraft_cuda.so" "$BUILD/tests/test_ops"; do
    [ -e "$f" ] || { echo "cuda_sweep: needs $f"; exit 2; }
done
export SOURCE BUILD emulator out GRAFT_SANITIZE=0 GRAFT_CUDA_LIB=$BUILD/libgraft_cuda.so CUDAEMU_THREADS=1
export CUDAEMU_CACHE=${CUDAEMU_CACHE:-$BUILD/cudaemu}
built=$(sha256sum "$BUILD/libgraft_cuda.so" "$BUILD/graft" "$BUILD"/tests/test_* | sha256sum | cut -c1-12)
mkdir -p "$out"
[ "$(cat "$out/built" 2>/dev/null)" = "$built" ] || rm -f "$out"/*.ok
echo "$built" >"$out/built"

# ---- the parts, one a line: name|options of the emulator|program or script[:filter of test_model|operations of test_ops] ----
programs=(test_decoder test_training test_merge test_adapters test_adapter_files test_params test_rows test_optimizers
    test_finite_diff)
model=(l\* f\* grad\* batch_\* [c-eq-z]\* a_t\* greedy\*) # by parts: the emulator keeps the stacks of each device that was opened
ops=("linear_forward,few rows" linear_backward fp8 "attention_forward,attention_backward" "packed attention" "cached attention")
rest=$(sed -nE 's/^GR_OP\((\w+),.*/\1/p' "$SOURCE/kernels/ops.def" | grep -vE '^(linear|attention)_' | paste -sd,)
ops+=("$rest")
parts() {
    local mode op name part
    for mode in "plain" "checked --check" "8.0 --cc 8.0" "8.0-checked --cc 8.0 --check" "eager --cp eager" \
        "eager-checked --cp eager --check" "backwards --order rev" "backwards-checked --order rev --check" \
        "mixed --order rand:1 --cp eager" "mixed-checked --order rand:2 --check" "delayed --delay 300"; do
        for op in "${ops[@]}"; do
            name=${op%%,*}
            [ "$op" != "$rest" ] || name=others
            echo "test_ops ${name// /_} ${mode%% *}|$(options "$mode")|test_ops:$op"
        done
    done
    for mode in "plain" "checked --check" "8.0 --cc 8.0" "backwards --order rev" "mixed --order rand:1 --cp eager" \
        "delayed --delay 100"; do
        for part in "${programs[@]}"; do echo "$part ${mode%% *}|$(options "$mode")|$part"; done
        for part in "${model[@]}"; do echo "test_model $part ${mode%% *}|$(options "$mode")|test_model:$part"; done
    done
    for part in unit/test_resources unit/test_cuda unit/test_cuda_runs unit/test_fp8 fault/cuda fault/cuda_planted; do
        echo "$part|-|$part.sh"
    done
    echo "fault/cuda_planted of arithmetic|-|fault/cuda_planted.sh:all"
    for part in e2e/quantize e2e/resume fault/bad_input; do echo "$part on cuda|cuda|$part.sh"; done
}
options() { [ "${1#* }" = "$1" ] && echo "" || echo "${1#* }"; }

# one NUMBER LINE: what a part says goes to $out/NAME.log, its result to $out/NAME.ok or .failed.
one() {
    local name options what file started=$SECONDS good=1
    IFS='|' read -r name options what <<<"$1"
    file=$out/${name//[^A-Za-z0-9_.-]/_}
    local program=${what%%:*} words=${what#*:}
    [ "$words" != "$what" ] || words=
    case $program in
    *.sh)
        [ "$options" != cuda ] || export GRAFT_DEVICE=cuda
        bash "$SOURCE/tests/$program" ${words:+$words} >"$file.log" 2>&1 || good=0
        ! grep -q '^not ok' "$file.log" || good=0
        ;;
    *)
        export GRAFT_DEVICE=cuda
        [ "$program" != test_model ] || export GRAFT_TEST=$words
        [ "$program" != test_ops ] || export GRAFT_OPS=$words
        timeout 7200 "$emulator" $options -- "$BUILD/tests/$program" >"$file.log" 2>&1 || good=0
        grep -q '^\[  PASSED  \] [1-9]' "$file.log" || good=0
        ;;
    esac
    rm -f "$file.failed"
    if [ $good = 1 ]; then echo $((SECONDS - started)) >"$file.ok"; else echo "$name" >"$file.failed"; fi
    local n_done spent=$(($(date +%s) - begun)) said=ok
    [ $good = 1 ] || said=NOT
    n_done=$(find "$out" -newer "$out/built" \( -name '*.ok' -o -name '*.failed' \) | wc -l)
    printf '%-3s %4d s  %-44s %d of %d, about %d min left\n' $said $((SECONDS - started)) "$name" "$n_done" "$n" \
        $((spent * (n - n_done) / (n_done > 0 ? n_done : 1) / 60))
}
export -f one
parts | awk -v f="$filter" -F'|' '$1 ~ f' | while IFS= read -r line; do
    name=${line%%|*}
    [ -e "$out/${name//[^A-Za-z0-9_.-]/_}.ok" ] || printf '%s\0' "$line"
done >"$out/to-do"
n=$(tr -cd '\0' <"$out/to-do" | wc -c) begun=$(date +%s)
export n begun
rm -f "$out"/*.failed
touch "$out/built"
sleep 1 # what is newer comes from this run
xargs -0 -r -n 1 -P "$(nproc)" bash -c 'one "$1"' _ <"$out/to-do"

echo
parts | awk -v f="$filter" -F'|' '$1 ~ f {print $1}' | while IFS= read -r name; do
    file=$out/${name//[^A-Za-z0-9_.-]/_}
    [ -e "$file.ok" ] || echo "NOT $name: $file.log"
done | tee "$out/failed"
failed=$(wc -l <"$out/failed") all=$(parts | awk -v f="$filter" -F'|' '$1 ~ f' | wc -l)
echo "cuda_sweep: $((all - failed)) of $all parts passed, $n of them now, in $((($(date +%s) - begun) / 60)) min"
[ "$failed" = 0 ] && [ "$all" -gt 0 ]
