#!/bin/bash
# model.quantize: training on a base whose layers are held in few bits, and what is refused.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
cat >tiny.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 16, batch_size: 5, learning_rate: 1.0e-2}
eval: {every: 4}
save: {every: 8}
log: {every: 1}
output_dir: runs/none
Y
train() { # train TYPE [options]: a run in runs/TYPE
    local type=$1
    shift
    "$GRAFT" train tiny.yaml "model.quantize=$type" "output_dir=runs/$type" "$@" >train.log 2>&1
    set -- $?
    cat train.log
    return "$1"
}
losses() { sed -nE 's/.*"eval_loss": ([^,]*),.*/\1/p' "runs/$1/metrics.jsonl"; }
# near A B TOLERANCE: two numbers
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN {d = a - b; exit !(a != "" && b != "" && d < t && d > -t)}'; }
score() { "$GRAFT" eval --data "$TINY/train.jsonl" --dtype fp32 --json "$@" 2>/dev/null | sed -nE 's/.*"loss": ([^,]*),?/\1/p'; }

before=$(sha256sum "$TINY/model.safetensors")
check "unquantised" train none
first=$(losses none | head -1) last=$(losses none | tail -1)
# 64 wide rows fit q8_0, q4_0 and nf4; none fit q4_k; those of the down projection, 160 wide, fit 32 alone
for spec in "q8_0 0.01 14 matrices quantised to q8_0" "q4_0 0.05 14 matrices quantised to q4_0" \
    "q4_k 0.05 14 of them in q5_0, as their rows are no whole blocks of q4_k" \
    "nf4 0.05 2 of them in q5_0, as their rows are no whole blocks of nf4"; do
    read -r type tolerance words <<<"$spec"
    check "$type trains" train "$type"
    check "$type says what was quantised" grep -qF "$words" train.log
    check "$type: the loss falls" awk -v a="$(losses "$type" | head -1)" -v b="$(losses "$type" | tail -1)" 'BEGIN {exit !(b < a)}'
    check "$type: the loss begins near the unquantised one" near "$(losses "$type" | head -1)" "$first" "$tolerance"
    check "$type: and ends near it" near "$(losses "$type" | tail -1)" "$last" "$tolerance"
done
check "nf4: another thread count" train nf4 output_dir=runs/one threads=1
check "gives the same adapter, bit for bit" \
    same runs/nf4/adapter/adapter_model.safetensors runs/one/adapter/adapter_model.safetensors
check "a quantised base is not the plain one" \
    differ runs/nf4/adapter/adapter_model.safetensors runs/none/adapter/adapter_model.safetensors
check "the run's recipe names the type" grep -q 'quantize: nf4' runs/nf4/recipe.yaml
rm -rf runs/nf4/checkpoint-16 runs/nf4/adapter
check "nf4: resumed" train nf4 --resume
check "is the uninterrupted run, bit for bit" \
    same runs/nf4/adapter/adapter_model.safetensors runs/one/adapter/adapter_model.safetensors
refused "resume with another type" 2 'model.quantize: q8_0, it began with nf4' train q8_0 --resume output_dir=runs/nf4
refused "method full" 2 'use adapter.method: lora or model.quantize: none' train nf4 adapter.method=full output_dir=runs/full
refused "an unknown type" 2 nf4 train nf5

check "plan counts the quantised base" bash -c '"$0" plan tiny.yaml model.quantize=nf4 | grep "base in nf4"' "$GRAFT"
bytes() { "$GRAFT" plan tiny.yaml model.quantize="$1" --json 2>/dev/null | sed -nE 's/.*"base_bytes": ([0-9]+).*/\1/p'; }
# two layers: q o 64x64, k v 32x64, gate up 160x64: 2 * 32,768 weights in blocks of 64; down 64x160: 20,480 in blocks of 32
check "by the byte" test "$(bytes nf4)" = $((2 * 32768 / 64 * 34 + 20480 / 32 * 22))
check "and nothing for an unquantised one" test "$(bytes none)" = 0
check "plan of a shape alone" bash -c \
    '"$0" plan tiny.yaml model.base="$1/config.json" model.quantize=nf4 --json | grep "\"base_bytes\": [1-9]"' "$GRAFT" "$TINY"
refused "too little memory for it" 2 'train.memory_limit allows' train q8_0 train.memory_limit=200KiB output_dir=runs/small

check "evaluate on the quantised base" near "$(score --model "$TINY" --adapter runs/nf4 --quantize nf4)" \
    "$(score --model "$TINY" --adapter runs/nf4)" 0.05
score --model "$TINY" --quantize nf4 >quantised.score
score --model "$TINY" >plain.score
check "which is not the plain one" differ quantised.score plain.score
check "generate on it" "$GRAFT" generate --model "$TINY" --adapter runs/nf4 --quantize nf4 --prompt 'Say hello.' --max-tokens 4
check "merge into the weights of the file" "$GRAFT" merge --adapter runs/nf4 --dtype fp32 --out merged
check "has the loss of file and adapter" near "$(score --model merged)" "$(score --model "$TINY" --adapter runs/nf4)" 1e-4
check "a GGUF in BF16" "$GRAFT" merge --model "$TINY" --dtype bf16 --out base.gguf
check "is quantised" train nf4 model.base=base.gguf output_dir=runs/gguf
check "and gives nearly the loss of the folder" near "$(losses gguf | tail -1)" "$(losses one | tail -1)" 0.01
check "a GGUF in Q8_0" "$GRAFT" merge --model "$TINY" --dtype q8_0 --out q8.gguf
check "keeps its type" train nf4 model.base=q8.gguf output_dir=runs/q8gguf
check "and says so" grep -qF 'q8.gguf: its layers stay in q8_0, quantize: nf4 changes nothing' train.log
check "the base model's file is unchanged" test "$before" = "$(sha256sum "$TINY/model.safetensors")"
finish
