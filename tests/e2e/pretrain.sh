#!/bin/bash
# Pre-training from random weights: init, a mix of sources read from its cache, documents apart, resumed.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
texts() { # texts NAME N: lines {"text"}
    for i in $(seq "$2"); do
        printf '{"text": "%s number %d: ' "$1" "$i"
        printf 'word%d ' $(for k in $(seq $((3 + i * 7 % 40))); do echo $((i * k % 61)); done)
        echo '"}'
    done >"$1.jsonl"
}
texts zh 60
texts en 30
texts code 6
cat >recipe.yaml <<Y
model: {base: base, dtype: fp32}
adapter: {method: full}
data:
  train:
    - {path: zh.jsonl, share: 840.48}
    - {path: en.jsonl, share: 314.88}
    - {path: code.jsonl, share: 99.3}
  eval: 0.1
  max_length: 48
  cache: cache
train: {objective: pretrain, max_steps: 24, batch_size: 6, learning_rate: 2.0e-3, lr_scheduler: wsd, warmup_steps: 4}
eval: {every: 8}
save: {every: 8, save_total_limit: 9}
log: {every: 1, tensorboard: false, plot: false}
threads: 2
output_dir: runs/a
Y
train() { # train NAME [options]
    local name=$1
    shift
    "$GRAFT" train recipe.yaml "output_dir=runs/$name" "$@" >"$name.log" 2>&1
}
metrics() {
    sed -E 's/"(tokens_per_second|eval_runtime|eval_samples_per_second)": [^,}]*,? ?//g; s/, \}/}/' "runs/$1/metrics.jsonl"
}
same_run() { # same_run A B: bit for bit
    metrics "$1" >"$1.metrics" && metrics "$2" >"$2.metrics" && same "$1.metrics" "$2.metrics" &&
        same "runs/$1/model/model.safetensors" "runs/$2/model/model.safetensors"
}
losses() { sed -nE 's/.*"(eval_)?loss": ([^,]*),.*/\2/p' "runs/$1/metrics.jsonl"; }
close() { # close FILE FILE TOLERANCE
    paste "$1" "$2" | awk -v t="$3" '{d = $1 - $2; if (d < 0) d = -d; if (NF != 2 || d > t * $1) {print; bad = 1}}
        END {exit bad || NR == 0}'
}

# ---- init ----
check "init from a folder with a tokenizer" "$GRAFT" init --config "$TINY" --out base --seed 3
check "the same seed gives the same model" "$GRAFT" init --config "$TINY" --out again --seed 3 --threads 1
check "byte for byte" same base/model.safetensors again/model.safetensors
cp "$SOURCE/tests/golden/vocab/sp.model" v.model
refused "a vocabulary alone is no tokenizer" 2 "v.model: a vocabulary alone; expected a folder that has it as tokenizer.model" \
    "$GRAFT" init --config "$TINY/config.json" --tokenizer v.model --out no
refused "nor is a file of a folder" 2 "tokenizer.json: name its folder: $TINY" \
    "$GRAFT" init --config "$TINY/config.json" --tokenizer "$TINY/tokenizer.json" --out no
check "another seed" "$GRAFT" init --config "$TINY" --out other --seed 4
check "gives another" differ base/model.safetensors other/model.safetensors
check "as JSON, for a GGUF" bash -c \
    '"$0" init --config "$1/config.json" --tokenizer "$1" --out base.gguf --json | grep "\"parameters\": "' "$GRAFT" "$TINY"
check "which generates" "$GRAFT" generate --model base.gguf --prompt x --max-tokens 2
sed 's/"vocab_size": 640/"vocab_size": 64/' "$TINY/config.json" >narrow.json
refused "a vocabulary that the tokenizer does not fit" 2 vocab_size \
    "$GRAFT" init --config narrow.json --tokenizer "$TINY" --out no

# ---- runs ----
check "a run" train a
check "the loss falls" awk -v a="$(losses a | head -1)" -v b="$(losses a | tail -1)" 'BEGIN {exit !(b < a - 0.5)}'
check "the shares of the mix are told" grep -q 'zh.jsonl: 66.99 % of the tokens' a.log
check "and that a source begins again" grep -q 'it begins again' a.log
check "the cache is sealed files" bash -c 'ls cache/*.tokens/index.h5 cache/*.tokens/shard-000000.h5'
check "from the cache, with one thread" train cached threads=1
check "which is the same run, bit for bit" same_run a cached
check "it came from the cache" grep -q 'from the cache' cached.log
check "without a cache" train memory data.cache=none
check "the same, bit for bit" same_run a memory
check "micro-batches" train micro train.micro_batch_tokens=48
losses a >a.loss
losses micro >micro.loss
check "change rounding alone" close a.loss micro.loss 2e-5

cp -r runs/a runs/cut
rm -rf runs/cut/model runs/cut/checkpoint-16 runs/cut/checkpoint-24 runs/cut/trainer_state.json
check "a run cut off after step 8 is resumed" train cut --resume
check "and is the uninterrupted one, bit for bit" same_run a cut

check "documents apart" train apart data.attention=document
check "are other samples" bash -c '! cmp -s runs/a/model/model.safetensors runs/apart/model/model.safetensors'
check "in memory" train apart-memory data.attention=document data.cache=none
check "the same, bit for bit" same_run apart apart-memory
cp -r runs/apart runs/apart-cut
rm -rf runs/apart-cut/model runs/apart-cut/checkpoint-16 runs/apart-cut/checkpoint-24 runs/apart-cut/trainer_state.json
check "resumed" train apart-cut data.attention=document --resume
check "bit for bit" same_run apart apart-cut
check "with dropout" train dropped adapter.method=lora adapter.dropout=0.1 adapter.rank=2 data.attention=document
refused "resumed with other attention" 2 data.attention \
    "$GRAFT" train recipe.yaml output_dir=runs/a data.attention=document --resume --max-steps 25
refused "resumed with another share" 2 data.train \
    "$GRAFT" train recipe.yaml output_dir=runs/a 'data.train=[{path: zh.jsonl, share: 1}]' --resume
check "the model that was trained is evaluated" \
    "$GRAFT" eval --model runs/a/model --data zh.jsonl --template none --limit 2

# Blocks shorter than the texts that the written model is tried with.
check "short blocks" train short data.max_length=4 train.max_steps=2
check "give a model" test -e runs/short/model/model.safetensors

# ---- refusals ----
refused "a share beside a weight" 2 'not both' "$GRAFT" validate recipe.yaml 'data.train=[{path: zh.jsonl, share: 1, weight: 1}]'
refused "a share for some" 2 'all sources have a share' \
    "$GRAFT" validate recipe.yaml 'data.train=[{path: zh.jsonl, share: 1}, {path: en.jsonl}]'
refused "a share for sft" 2 'use weight' "$GRAFT" validate recipe.yaml train.objective=sft
refused "documents for sft" 2 'data.attention' \
    "$GRAFT" validate recipe.yaml train.objective=sft data.train=zh.jsonl data.attention=document
refused "a share of evaluation data" 2 'share is of data.train' \
    "$GRAFT" validate recipe.yaml 'data.eval=[{path: zh.jsonl, share: 1}]'
refused "a mix without whole blocks" 3 'no whole block' "$GRAFT" train recipe.yaml output_dir=runs/no data.max_length=2000
finish
