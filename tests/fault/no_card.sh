#!/bin/bash
# A card that is not there, or does not open: auto goes on on the CPU and says why where a driver is there; a named card is refused
# with the reason. A driver is a file of its name here.
. "$(dirname "$0")/../lib.sh"
[ -z "${GRAFT_CARD:-}" ] || exit 77
if ldconfig -p 2>/dev/null | grep -c 'libcuda.so.1' >/dev/null; then
    echo "skip cards that are not there: there is a driver here"
    exit 77
fi
cd "$WORK" || exit 1
mkdir driver
echo 'int nothing;' | cc -shared -o driver/libcuda.so.1 -x c - || exit 1
with_driver() { env LD_LIBRARY_PATH="$WORK/driver" "$@"; }
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 2}
data: {train: $TINY/train.jsonl, cache: none}
train: {max_steps: 1}
Y
train() { "$GRAFT" train r.yaml output_dir="$1" "${@:2}"; }
says() { # says NAME TEXT: in check.log
    if grep -qF -- "$2" check.log; then ok "$1"; else not_ok "$1" "no: $2" check.log; fi
}
unset GRAFT_DEVICE GRAFT_CUDA_LIB
check "without a driver the CPU trains" train plain
grep 'device auto' check.log >said
none "and nothing is said of cards" "said" said
[ ! -e "$BUILD/libgraft_cuda.so" ] ||
    refused "a named card is refused" 2 "device cuda: there is no NVIDIA driver (libcuda.so.1)" train no device=cuda
export GRAFT_CUDA_LIB=/nowhere/libgraft_cuda.so
check "a driver without our library: the CPU trains" with_driver "$GRAFT" train r.yaml output_dir=gone
says "it says so" "device auto: /nowhere/libgraft_cuda.so: cannot open"
check "so does generate" with_driver "$GRAFT" generate --model "$TINY" --prompt hi --max-tokens 1
says "it says so, too" "device auto: /nowhere/libgraft_cuda.so"
check "device: cpu is meant" with_driver "$GRAFT" train r.yaml output_dir=meant device=cpu
grep nowhere check.log | grep -v output_dir >said
none "nothing is said" "said" said
library=$BUILD/libgraft_cuda.so
[ -e "$library" ] || library=$BUILD/libgraft_mpi.so # of any library
if [ -e "$library" ]; then
    head -c "$(($(stat -c %s "$library") / 3))" "$library" >cut.so
    export GRAFT_CUDA_LIB=$WORK/cut.so
    check "a library that is cut off: the CPU trains" with_driver "$GRAFT" train r.yaml output_dir=cut
    says "it is named" "cut.so is cut off: install it again"
    refused "for a named card it is an error" 2 "cut.so is cut off" with_driver "$GRAFT" train r.yaml output_dir=no device=cuda
    check "doctor tells it" with_driver "$GRAFT" doctor
    says "with its name" "cut.so is cut off"
fi
for type in fp32 bf16; do # by the data sheet an H100 multiplies bfloat16 14 times as fast
    "$GRAFT" plan r.yaml output_dir=p --device h100 --dtype $type --json >$type.json 2>/dev/null
done
check "a plan for float32 takes its own rate" jq -en --slurpfile a fp32.json --slurpfile b bf16.json \
    '$a[0].seconds_per_step > 8 * $b[0].seconds_per_step'
finish
