#!/bin/bash
# Long runs of the program on the CUDA backend, against the CPU's: 50 steps in float32 and in bfloat16, losses and gradients; small
# and large ranks; what was trained merged here and there; the quickstart's recipe. On an emulator that lies outside the project.
if [ -z "${GRAFT_DEVICE:-}" ]; then export GRAFT_DEVICE=cuda; fi # lib.sh finds the emulator
. "$(dirname "$0")/../lib.sh"
unset GRAFT_DEVICE
cd "$WORK" || exit 1
cat >lora.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 8, alpha: 8, dropout: 0.1}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 50, batch_size: 5, learning_rate: 3.0e-3}
eval: {every: 25}
save: {every: 50}
log: {every: 1}
Y
sed 's/^adapter: .*/adapter: {method: full}/; s/3.0e-3/1.0e-3/' lora.yaml >full.yaml
train() { # train RECIPE NAME DEVICE [options]
    local recipe=$1.yaml name=$2 device=$3
    shift 3
    "$GRAFT" train "$recipe" "device=$device" "output_dir=$name" "$@"
}
column() { sed -nE "s/.*\"($1)\": ([^,]*),.*/\\2/p" "$2/metrics.jsonl"; }
# near KEY NAME NAME TOLERANCE ROWS: so many numbers of two runs
near() {
    paste <(column "$1" "$2") <(column "$1" "$3") | awk -v t="$4" -v n="$5" '
        {d = $1 - $2; if (d < 0) d = -d; if (d > t * $1) {print NR, $0; bad = 1}}
        NF != 2 {bad = 1}
        END {exit bad || NR != n}'
}
for recipe in lora full; do
    check "$recipe on the CPU, 50 steps" train $recipe $recipe cpu
    check "$recipe on cuda" train $recipe $recipe-32 cuda
    check "$recipe: in float32 the losses are the CPU's" near 'loss|eval_loss' $recipe $recipe-32 2e-5 52
    check "$recipe: and the gradients" near grad_norm $recipe $recipe-32 2e-5 50
    check "$recipe in bfloat16 on cuda" train $recipe $recipe-16 cuda model.dtype=bf16
    check "$recipe: losses within 0.5 % of float32's" near 'loss|eval_loss' $recipe $recipe-16 5e-3 52
    check "$recipe: gradients within 2 %" near grad_norm $recipe $recipe-16 2e-2 50
done

# ---- ranks that other kernels multiply by; biases and an untied head ----
QWEN=$SOURCE/tests/golden/tiny-qwen2
for rank in 1 20 64; do
    short=(train.max_steps=4 eval.every=2 "model.base=$QWEN" "data.train=$TINY/train.jsonl" "adapter.rank=$rank"
        train.batch_size=20)
    check "rank $rank on the CPU" train lora rank$rank cpu "${short[@]}"
    check "rank $rank on cuda" train lora rank$rank-32 cuda "${short[@]}"
    check "rank $rank: the losses are the CPU's" near 'loss|eval_loss' rank$rank rank$rank-32 2e-5 6
    check "rank $rank in bfloat16 on cuda" train lora rank$rank-16 cuda "${short[@]}" model.dtype=bf16
    check "rank $rank: losses within 0.5 %" near 'loss|eval_loss' rank$rank rank$rank-16 5e-3 6
    check "rank $rank: gradients within 2 %" near grad_norm rank$rank rank$rank-16 2e-2 4
done

# ---- what comes of it is anybody's ----
check "merged on cuda" env GRAFT_DEVICE=cuda "$GRAFT" merge --adapter lora-16 --dtype bf16 --out merged.cuda
check "and on the CPU" env GRAFT_DEVICE=cpu "$GRAFT" merge --adapter lora-16 --dtype bf16 --out merged.cpu
check "bit for bit the same" same merged.cuda/model.safetensors merged.cpu/model.safetensors

# ---- the quickstart's recipe and its steps ----
quick() { # quick DEVICE
    "$GRAFT" train "$SOURCE/recipes/quickstart.yaml" "model.base=$TINY" data.train=train.jsonl data.eval=0.2 data.cache=none \
        "output_dir=quick-$1" train.max_steps=6 eval.every=3 log.every=1 model.dtype=fp32 "device=$1"
}
score() { # score DEVICE: loss and exact match
    "$GRAFT" eval --data test.jsonl --metrics loss,exact_match --dtype fp32 --device "$1" --json --model "$TINY" \
        --adapter quick-cuda 2>/dev/null | sed -nE 's/.*"(loss|exact_match)": *([^,]*),?.*/\2/p'
}
same_score() {
    paste <(score cpu) <(score cuda) |
        awk '{d = $1 - $2; print} NF != 2 || d > 1e-4 || d < -1e-4 {bad = 1} END {exit bad || NR != 2}'
}
check "data" "$GRAFT" data make school-math --n 24 --seed 1 --language en --steps 1-2 --out train.jsonl
check "and some to test" "$GRAFT" data make school-math --n 4 --seed 2 --language en --steps 1-2 --out test.jsonl
check "recipes/quickstart.yaml on the CPU" quick cpu
check "with device: cuda" quick cuda
check "has the CPU's losses" near 'loss|eval_loss' quick-cpu quick-cuda 2e-5 8
check "its score is the CPU's" same_score
check "merged to a GGUF" env GRAFT_DEVICE=cuda "$GRAFT" merge --adapter quick-cuda --dtype q8_0 --out quick.gguf
check "which generates" "$GRAFT" generate --model quick.gguf --device cuda --prompt 'What is 3 + 4?' --max-tokens 4

# ---- bytes of the card's memory: the most that a run had at one time, and what its plan says; beside cuBLASLt's workspace ----
printf '#!/bin/sh\nexec env -u SHELLOPTS "%s" -- sh -c '\''LD_PRELOAD=$0:$LD_PRELOAD exec "$@"'\'' "%s" "%s" "$@"\n' \
    "$emulator" "$WORK/cuda_peak.so" "$BUILD/graft" >peak && chmod +x peak
check "what counts them" "${CC:-cc}" -shared -fPIC -O1 "-I$SOURCE" -o cuda_peak.so \
    "$SOURCE/tests/kernels/cuda_peak.c" -ldl -lpthread
as_planned() { # as_planned NAME RECIPE [options]
    local name=$1 recipe=$2.yaml planned
    shift 2
    local options=(device=cuda train.max_steps=2 eval.every=2 data.eval=0.2 "$@")
    check "$name" env CUDA_PEAK=peak.bytes ./peak train "$recipe" "${options[@]}" output_dir=memory --overwrite
    planned=$("$GRAFT" plan "$recipe" "${options[@]}" --json 2>/dev/null | sed -nE 's/.*"total": ([0-9]+).*/\1/p' | head -1)
    check "$name: the plan is within 5 % of its peak" awk -v planned="$planned" '
        {used = $2 - 2 ^ 25; d = (planned - 2 ^ 25 - used) / used; print used, planned, d}
        END {exit !(NR == 1 && used > 1e6 && d > -0.05 && d < 0.05)}' peak.bytes
    rm -f peak.bytes
}
as_planned "memory of adapters" lora model.dtype=bf16
as_planned "memory of every weight" full
as_planned "memory of nf4, recomputed" lora model.dtype=bf16 model.quantize=nf4 train.gradient_checkpointing=full adapter.rank=64
as_planned "memory with generated text" lora 'eval.metrics=[loss,exact_match]'
finish
