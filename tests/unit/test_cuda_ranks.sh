#!/bin/bash
# Ranks with a card each, in the emulator, whose NCCL moves bytes between processes: what arrives, who is named when one is lost,
# and that they train what one card trains. `test_cuda_ranks.sh all`: eight ranks, 30 steps, with delays and checked mode, and all
# ways of sharding.
. "$(dirname "$0")/../lib.sh"
needs_emulator "ranks on cards"
needs_ranks "ranks on cards"
all=${1:-}
export OMPI_MCA_odls_base_sigkill_timeout=4
cards=0 # of the host; 0: as many as ranks
how=()  # options of the emulator
ranks() { # ranks N COMMAND...
    local n=$1
    shift
    env -u SHELLOPTS timeout 600 "$emulator" --devices $((cards ? cards : n)) "${how[@]}" -- mpirun -n "$n" "$@"
}
cd "$WORK" || exit 1

# ---- what arrives, and who is lost ----
ranks 4 "$BUILD/tests/ranks" cards >said.txt 2>err.txt
check "pieces of all sizes come to whom they are for" test "$(grep -c ': 0 wrong' said.txt)" = 4
how=(--delay 2000)
ranks 3 "$BUILD/tests/ranks" cards >said.txt 2>err.txt
check "and so they do where cards work late" test "$(grep -c ': 0 wrong' said.txt)" = 3
how=()
if [ "$all" = all ]; then # mpirun takes its time over each
    ranks 3 "$BUILD/tests/ranks" card-dies 1 >/dev/null 2>err.txt
    check "one that is killed is named" grep -q '^rank 1 (.*) is gone, seen by rank . in trying of step [45]' err.txt
    ranks 3 "$BUILD/tests/ranks" card-stops 2 >/dev/null 2>err.txt
    check "one that stands still is named" \
        grep -q '^rank 2 (.*) was not heard of for 3 s, seen by rank . in trying of step [45]' err.txt
    pkill -KILL -f "$BUILD/tests/ranks card-stops 2"
    ranks 3 "$BUILD/tests/ranks" card-fails 0 >/dev/null 2>err.txt
    check "what one fails of, the others learn" test "$(grep -c '^rank 0 (.*): no milk' err.txt)" = 2
fi

# ---- what they train ----
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, target_modules: [q_proj, v_proj, down_proj], dropout: 0.1}
data: {train: t.jsonl, max_length: 128, cache: none}
train: {max_steps: 5, batch_size: 16, learning_rate: 3.0e-3}
save: {every: 100}
log: {every: 1}
device: cuda
output_dir: run
Y
counting 150 t.jsonl
losses() { jq -c '[.step, .loss, .num_tokens]' "$1/metrics.jsonl"; }
close() { # close RUN RUN: the same rows, losses within the rounding of sums
    jq -n --slurpfile a <(losses "$1") --slurpfile b <(losses "$2") --argjson n "$steps" '($a | length) == $n and
        ($b | length) == $n and all(range($n); $a[.][0] == $b[.][0] and $a[.][2] == $b[.][2] and
        ($a[.][1] - $b[.][1] | fabs) < 1e-6)' | grep -x true
}
full=(adapter=null adapter.method=full train.learning_rate=3e-4)
try() { # try RANKS NAME WAY SETTING...: a run of one card that is there, on several, and once more with `again`
    local n=$1 name=$2 way=$3
    shift 3
    how=()
    ranks "$n" "$GRAFT" train r.yaml output_dir="$name$way" train.sharding="$way" train.max_steps="$steps" "$@" >said.txt 2>err.txt
    check "$name: NCCL moves the bytes" grep -q 'bytes between devices go by NCCL' err.txt
    check "$name, $way: $n cards train what one does" close "$name" "$name$way"
    how=("${again[@]}")
    ranks "$n" "$GRAFT" train r.yaml output_dir="again$name$way" train.sharding="$way" train.max_steps="$steps" log.every=100 "$@" \
        >/dev/null 2>again.txt
    check "$name, $way, ${again[*]}: the same bits" same {,again}"$name$way/$files"
}
if [ "$all" = all ]; then steps=30 n=8 again=(--delay 300 --check); else steps=5 n=2 again=(--delay 50); fi
emulated "$GRAFT" train r.yaml output_dir=lora train.max_steps=$steps >/dev/null 2>one.log
files=adapter/adapter_model.safetensors
try $n lora none
# Of 3,584 floats a rank sends every other its share of them, and its own share of the sums to all: 2 (n - 1) / n.
floats=$(jq -s 'map(.num_parameters // empty)[0] // 3584' lora/metrics.jsonl)
check "and send what theory says" grep -q "each of $n has sent $((2 * (n - 1) * floats / n * 4)) bytes" err.txt
if [ "$all" = all ]; then
    emulated "$GRAFT" train r.yaml output_dir=full train.max_steps=$steps "${full[@]}" >/dev/null 2>one.log
    files=model/model.safetensors
    for way in zero1 zero2 zero3; do try $n full $way "${full[@]}"; done
    check "zero2 has the bits of zero1" same fullzero[12]/$files
    check "zero3 has them too" same fullzero[13]/$files
fi

# ---- one card is late: what the other has sent for is not there when it goes on, and is waited for ----
how=()
late() { # late WAY MICROSECONDS: of the second rank, before each work of a queue
    # shellcheck disable=SC2016
    ranks 2 sh -c 'CUDAEMU_DELAY_US=$((OMPI_COMM_WORLD_RANK * $0)) exec "$@"' "$2" "$GRAFT" train r.yaml "${full[@]}" --overwrite \
        output_dir="late$1$2" train.sharding="$1" train.batch_size=4 train.max_steps=4 log.every=100 >/dev/null 2>late.txt
}
late zero1 0
for way in zero1 zero2 zero3; do
    late $way 2000
    check "$way, one card late: the same bits" same latezero10/model/model.safetensors "late${way}2000/model/model.safetensors"
done

# ---- what a step calls on two cards, of the same samples each: that of 4 steps less that of 3 ----
how=(--trace)
for k in 3 4; do
    ranks 2 "$GRAFT" train r.yaml output_dir=counted --overwrite train.max_steps=$k log.every=100 train.batch_size=4 >/dev/null \
        2>$k.trace
done
how=()
of_step() { echo $(($(grep -cE "\\b$1\\b" 4.trace) - $(grep -cE "\\b$1\\b" 3.trace))); }
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "$2, expected $3"; fi; }
is "a step of two cards sends to the other twice" "$(of_step ncclSend)" 4
is "allocates nothing" "$(of_step 'cuda(Malloc|HostAlloc|Free)')" 0
is "and never waits blindly" "$(of_step 'cuda(Stream|Event|Device)Synchronize')" 0

# ---- a card each, or none ----
cards=1
ranks 2 "$GRAFT" train r.yaml output_dir=few >/dev/null 2>err.txt
check "fewer cards than ranks are refused" grep -q 'graft: error: .*ranks 0 and 1 have the same card' err.txt
cards=2
# shellcheck disable=SC2016
own=(sh -c 'CUDA_VISIBLE_DEVICES=$((1 - OMPI_COMM_WORLD_RANK)) exec "$@"' -)
check "a rank may be given its own alone" ranks 2 "${own[@]}" "$GRAFT" train r.yaml output_dir=own train.max_steps=3
check "which trains the same" ranks 2 "$GRAFT" train r.yaml output_dir=all train.max_steps=3
check "to the bit" same own/adapter/adapter_model.safetensors all/adapter/adapter_model.safetensors
ranks 2 env CUDA_VISIBLE_DEVICES=1 "$GRAFT" train r.yaml output_dir=few >/dev/null 2>err.txt
check "but not one for all" grep -q 'graft: error: .*ranks 0 and 1 have the same card' err.txt
ranks 2 "$GRAFT" train r.yaml output_dir=few device=cuda:1 >/dev/null 2>err.txt
check "and so is one card for all" grep -q 'graft: error: .*device cuda:1 is one card' err.txt
cards=0
finish
