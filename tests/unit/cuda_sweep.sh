#!/bin/bash
# cuda_sweep - the CUDA backend in every way that the emulator has: each test of kernels and model, checked, on cards of 9.0 and
# 8.0, threads in order, backwards and mixed, copies late and at once, streams delayed; the planted faults; scripts that run the
# program. Hours on two cores; run before work on the backend is closed. CI runs what test_cuda.sh and its siblings have.
#
#   tests/unit/cuda_sweep.sh [OPTIONS] [FILTER]    FILTER: an expression for names of parts, as `test_ops.*backwards`
#
#   --list         the parts, what came of each with this build, and the seconds that it took when it last ran
#   --minutes N    begins no part after so many
#   --jobs N       parts at a time (one a CPU)
#   --out FOLDER   build/gcc/cuda-sweep: what each part said, and what came of it
#
# Parts come in the order of what they find. Those that passed with this build are not run again, so that a sweep goes on where it
# was ended. The last line counts. Interrupted parts have neither passed nor failed.
#
# What is left out, as what is kept sees all that it could:
# - kernels unchecked: a checked run has the same order and compares the same values. CI's are unchecked (unit/test_cuda.sh, a part)
# - the model's tests backwards and mixed: order is a matter of one launch, and each kernel has its launches in test_ops
# - cards of 8.0 in other orders: no kernel asks for the architecture, its PTX there is the compiler's other choice of instructions
set -uo pipefail
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd) BUILD=$(cd "${BUILD:-$SOURCE/build/gcc}" && pwd) || exit 2
emulator=${GRAFT_EMULATOR:-$SOURCE/../shared/cudaemu/run} out=$BUILD/cuda-sweep list=0 minutes=100000 jobs=$(nproc)
while [ $# -gt 0 ]; do
    case $1 in
    --list) list=1 ;;
    --minutes | --jobs | --out)
        [ $# -gt 1 ] || { echo "cuda_sweep: $1 wants a value"; exit 2; }
        case $1 in
        --minutes) minutes=$2 ;;
        --jobs) jobs=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    -*) sed -n '2,/^set -uo/s/^#\( \|$\)//p' "$0" && exit 2 ;;
    *) break ;;
    esac
    shift
done
filter=${1:-.}
for f in "$emulator" "$BUILD/libgraft_cuda.so" "$BUILD/graft" "$BUILD/tests/test_ops"; do
    [ -e "$f" ] || { echo "cuda_sweep: needs $f"; exit 2; }
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
export SOURCE BUILD emulator out GRAFT_SANITIZE=0 GRAFT_CUDA_LIB=$BUILD/libgraft_cuda.so CUDAEMU_THREADS=1
export CUDAEMU_CACHE=${CUDAEMU_CACHE:-$BUILD/cudaemu}
built=$(sha256sum "$BUILD/libgraft_cuda.so" "$BUILD/graft" "$BUILD"/tests/test_* | sha256sum | cut -c1-12)
[ "$(cat "$out/built" 2>/dev/null)" = "$built" ] || rm -f "$out"/*.ok "$out"/*.failed
echo "$built" >"$out/built"

# ---- the parts, one a line: name|options of the emulator|program or script[:filter of test_model|operations of test_ops] ----
programs=(test_decoder test_training test_merge test_adapters test_adapter_files test_params test_rows test_optimizers test_sample
    test_finite_diff test_card test_bits)
# By first letters: the emulator keeps the stacks of each device that was opened.
mapfile -t model < <(sed -nE 's/^ *cmocka_unit_test\((.).*/\1*/p' "$SOURCE/tests/unit/test_model.c" | sort -u)
ops=("attention_forward,attention_backward" "packed attention" "cached attention" "linear_forward,few rows" linear_backward fp8)
rest=$(sed -nE 's/^GR_OP\((\w+),.*/\1/p' "$SOURCE/kernels/ops.def" | grep -vE '^(linear|attention)_' | paste -sd,)
ops=("$rest" "${ops[@]}")
of_kernels() { # of_kernels MODE OPTIONS
    local op name
    for op in "${ops[@]}"; do
        name=${op%%,*}
        [ "$op" != "$rest" ] || name=others
        echo "test_ops ${name// /_} $1|$2|test_ops:$op"
    done
}
of_model() {
    local part
    for part in "${programs[@]}"; do echo "$part $1|$2|$part"; done
    for part in "${model[@]}"; do echo "test_model $part $1|$2|test_model:$part"; done
}
scripts() {
    local part
    for part; do echo "$part|-|$part.sh"; done
}
parts() {
    of_kernels checked "--check"
    of_kernels mixed "--check --cp eager --order rand:1"
    scripts fault/cuda fault/cuda_planted
    of_model delayed "--delay 100"
    of_kernels delayed "--delay 300"
    scripts unit/test_cuda unit/test_cuda_runs unit/test_fp8 unit/test_resources
    of_model checked "--check"
    of_kernels backwards "--check --order rev"
    of_kernels 8.0 "--check --cc 8.0"
    of_kernels eager "--check --cp eager"
    of_model 8.0 "--cc 8.0"
    for part in e2e/quantize e2e/resume fault/bad_input; do echo "$part on cuda|cuda|$part.sh"; done
    echo "fault/cuda_planted of arithmetic|-|fault/cuda_planted.sh:all"
    for part in lora full fp8 nf4 generate; do echo "fault/cuda of every call: $part|-|fault/cuda.sh:all $part"; done
}
wanted() { parts | awk -v f="$filter" -F'|' '$1 ~ f'; }
file_of() { echo "$out/${1//[^A-Za-z0-9_.-]/_}"; }
export -f file_of

# one LINE: what a part says goes to its file's .log, what came of it to .ok or .failed, its seconds to .seconds.
one() {
    local name options what file started good=1 spent
    [ "$(date +%s)" -lt "$end" ] || return 0
    IFS='|' read -r name options what <<<"$1"
    file=$(file_of "$name") started=$(date +%s)
    local program=${what%%:*} words=${what#*:}
    [ "$words" != "$what" ] || words=
    cd "$SOURCE" || exit 1 # where tests find their files
    case $program in
    *.sh)
        [ "$options" != cuda ] || export GRAFT_DEVICE=cuda
        bash "$SOURCE/tests/$program" ${words:+$words} >"$file.log" 2>&1 || good=0
        ! grep -q '^not ok' "$file.log" || good=0
        grep -q '^ok' "$file.log" || good=0
        ;;
    *)
        export GRAFT_DEVICE=cuda
        [ "$program" != test_model ] || export GRAFT_TEST=$words
        [ "$program" != test_ops ] || export GRAFT_OPS=$words
        timeout 7200 "$emulator" $options -- "$BUILD/tests/$program" >"$file.log" 2>&1 || good=0
        grep -q '^\[  PASSED  \] [1-9]' "$file.log" || good=0
        ;;
    esac
    spent=$(($(date +%s) - started))
    rm -f "$file.failed"
    echo $spent >"$file.seconds"
    if [ $good = 1 ]; then : >"$file.ok"; else : >"$file.failed"; fi
    printf '%-3s %5d s  %-46s %d of %d, after %d min\n' "$([ $good = 1 ] && echo ok || echo NOT)" $spent "$name" \
        "$(find "$out" -newer "$out/began" \( -name '*.ok' -o -name '*.failed' \) | wc -l)" "$n" $((($(date +%s) - begun) / 60))
}
export -f one

# What came of each: its state, seconds and name.
told() {
    wanted | while IFS='|' read -r name _; do
        file=$(file_of "$name") said=-
        [ ! -e "$file.failed" ] || said=NOT
        [ ! -e "$file.ok" ] || said=ok
        printf '%-3s %5s s  %s\n' $said "$(cat "$file.seconds" 2>/dev/null || echo -)" "$name"
    done
}
if [ $list = 1 ]; then
    told
    exit
fi
wanted | while IFS= read -r line; do
    [ -e "$(file_of "${line%%|*}").ok" ] || printf '%s\0' "$line"
done >"$out/to-do"
n=$(tr -cd '\0' <"$out/to-do" | wc -c) begun=$(date +%s)
export n begun end=$((begun + minutes * 60))
touch "$out/began"
sleep 1 # what is newer comes from this run
xargs -0 -r -n 1 -P "$jobs" bash -c 'one "$1"' _ <"$out/to-do"

echo
told | grep -v '^ok' | while read -r said _ _ name; do
    echo "$([ "$said" = NOT ] && echo NOT || echo "not run:") $name: $(file_of "$name").log"
done
told | awk -v now="$n" -v min=$((($(date +%s) - begun) / 60)) '
    $1 == "ok" {passed++} $1 == "NOT" {failed++}
    END {
        printf "cuda_sweep: %d of %d parts passed, %d failed, %d not run; %d were to do, in %d min\n", passed, NR, failed, \
            NR - passed - failed, now, min
        exit NR == 0 || passed < NR
    }'
