#!/bin/bash
# Every architecture from recipe to merged model: LoRA on plain and quantised weights, every weight, both exports.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
GOLDEN=$SOURCE/tests/golden
train() { # train MODEL RUN [options]
    local model=$1 run=$2
    shift 2
    "$GRAFT" train r.yaml "model.base=$GOLDEN/tiny-$model" "output_dir=$run" "$@"
}
cat >r.yaml <<Y
model: {dtype: fp32}
adapter: {rank: 4, alpha: 8}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none, max_length: 128}
train: {max_steps: 8, batch_size: 5, learning_rate: 1.0e-2}
eval: {every: 4}
log: {every: 1, plot: false, tensorboard: false}
Y
losses() { sed -nE 's/.*"eval_loss": ([^,]*),.*/\1/p' "$1/metrics.jsonl"; }
falls() { awk -v a="$(losses "$1" | head -1)" -v b="$(losses "$1" | tail -1)" 'BEGIN {exit !(b != "" && b < a)}'; }
near() { awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN {d = a - b; exit !(a != "" && b != "" && d < t && d > -t)}'; }
score() {
    "$GRAFT" eval --data "$TINY/train.jsonl" --max-length 128 --template smollm2 --dtype fp32 --compute exact --json "$@" \
        2>/dev/null | sed -nE 's/.*"loss": ([^,]*),?/\1/p'
}

for m in qwen3 mistral gemma2 gemma3 phi3; do
    check "$m: LoRA trains" train $m $m
    check "$m: the loss falls" falls $m
    check "$m: q8_0 layers, int8 products" train $m $m-q8 model.quantize=q8_0 model.compute=int8
    check "$m: begin near the exact ones" near "$(losses $m-q8 | head -1)" "$(losses $m | head -1)" 0.05
    check "$m: every weight trains" train $m $m-full adapter.method=full train.learning_rate=3e-3
    check "$m: the loss falls" falls $m-full
    check "$m: merged as a folder" "$GRAFT" merge $m --out $m-hf --dtype fp32
    check "$m: merged as a GGUF" "$GRAFT" merge $m --out $m.gguf --dtype fp32
    loss=$(score --model "$GOLDEN/tiny-$m" --adapter $m)
    check "$m: the folder has the loss of base + adapter" near "$(score --model $m-hf)" "$loss" 1e-5
    check "$m: the GGUF has it" near "$(score --model $m.gguf)" "$loss" 1e-5
    check "$m: what full training wrote as a GGUF" "$GRAFT" merge $m-full --out $m-full.gguf --dtype fp32
    check "$m: has the run's loss" near "$(score --model $m-full.gguf)" "$(score --model $m-full)" 1e-5
    check "$m: generates" "$GRAFT" generate --model $m.gguf --prompt "Say hello." --max-tokens 4
done

# what llama.cpp's graph cannot do without is said where the model has none
cp -r "$GOLDEN/tiny-gemma2" plain && sed -i 's/\(attn_logit_softcapping": \)[0-9.]*/\1null/' plain/config.json
says "gemma2 without a cap of its scores" 0 "only with soft caps" "$GRAFT" merge --model plain --out plain.gguf --dtype fp32
finish
