#!/bin/bash
# Every optimizer with every way to hold trained weights: the same model with gradient release and without, with any threads, from
# a run that stopped half-way; what cannot be had together is refused by name; memory falls as planned.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
G=$GRAFT
cat >full.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {method: full}
data: {train: $TINY/train.jsonl, cache: none}
train: {max_steps: 4, batch_size: 4, learning_rate: 1.0e-2, max_grad_norm: 0, weight_decay: 0.1}
save: {every: 2, save_total_limit: 9}
log: {every: 1, tensorboard: false, plot: false}
threads: 2
Y
train() { "$G" train full.yaml "output_dir=$@"; }
loss() { sed -n 's/.*"loss": \([^,]*\).*/\1/p' "$1/metrics.jsonl" | tail -1; }
first_loss() { sed -n 's/.*"loss": \([^,]*\).*/\1/p' "$1/metrics.jsonl" | head -1; }
learned() { awk "BEGIN {exit !($(loss "$1") < $(first_loss "$1"))}"; }
half_way() { # half_way A B optimizer ...: B goes on from A's checkpoint in the middle
    cp -r "$1" "$2" && rm -r "$2/checkpoint-4" "$2/model" && "$G" train full.yaml --resume "output_dir=$2" "${@:3}"
}
for optimizer in adamw adamw_8bit adafactor; do
    for weights in fp32 bf16 bf16_stochastic; do
        name=$optimizer-$weights how=(train.optimizer=$optimizer train.weights=$weights)
        check "$name" train "$name" "${how[@]}"
        check "$name: it learns" learned "$name"
        check "$name: a layer at a time" train "$name-released" "${how[@]}" train.gradient_release=true threads=1
        check "$name: the same model" same "$name/model/model.safetensors" "$name-released/model/model.safetensors"
        check "$name: goes on" half_way "$name" "$name-resumed" "${how[@]}"
        check "$name: as if it had not stopped" same "$name/model/model.safetensors" "$name-resumed/model/model.safetensors"
        check "$name: the losses, too" test "$(loss "$name")" = "$(loss "$name-resumed")"
    done
done
for name in adamw_8bit-fp32 adafactor-fp32 adamw-bf16_stochastic adamw_8bit-bf16_stochastic; do
    check "$name is not adamw in float32" differ adamw-fp32/model/model.safetensors "$name/model/model.safetensors"
done
check "an adapter with moments in 8 bits" "$G" train full.yaml output_dir=lora adapter.method=lora train.optimizer=adamw_8bit
released() { train x train.gradient_release=true "$@"; }
refused "release needs no norm" 2 "train.gradient_release: needs train.max_grad_norm: 0" released train.max_grad_norm=1
refused "release needs one micro-batch" 2 "train.micro_batch_tokens is 16" released train.micro_batch_tokens=16
refused "release cannot skip" 2 "train.on_nonfinite: skip cannot" released train.on_nonfinite=skip
refused "release of adapters" 2 "train.gradient_release: only method full" released adapter.method=lora
refused "adapters are float32" 2 "train.weights: only method full" train x train.weights=bf16 adapter.method=lora
refused "adafactor has no betas" 2 "train.adam_beta1: adafactor has no such" train x train.optimizer=adafactor train.adam_beta1=0.8
sed 's/"vocab_size": [0-9]*/"vocab_size": 4500000/' "$TINY/config.json" >many.json
refused "adafactor has room for so many rows" 2 "4500000 x 64 is more than adafactor does; use another train.optimizer" \
    "$G" plan full.yaml model.base=many.json train.optimizer=adafactor output_dir=x data.train=none.jsonl
refused "an unknown optimizer" 2 "adamw_8bit" train x train.optimizer=lion
refused "another optimizer's checkpoint" 2 "train.optimizer" \
    "$G" train full.yaml --resume output_dir=adamw-fp32 train.max_steps=6 train.optimizer=adafactor
finish
