#!/bin/bash
# model.compute: fp8 on a card: 50 steps beside those of bf16, bits, what is refused by name. Needs the CUDA backend and the
# emulator, which lies outside the project.
. "$(dirname "$0")/../lib.sh"
needs_emulator "fp8"
cd "$WORK" || exit 1
cat >tiny.yaml <<Y
model: {base: $TINY, dtype: bf16, compute: fp8}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 50, batch_size: 5, learning_rate: 2.0e-3}
eval: {every: 25}
save: {every: 25}
log: {every: 1}
device: cuda
Y
train() { # train NAME [options]
    local name=$1
    shift
    emulated "$GRAFT" train tiny.yaml "output_dir=$name" "$@"
}
losses() { sed -nE 's/.*"(eval_)?loss": ([^,]*),.*/\2/p' "$1/metrics.jsonl"; }
close() { # close NAME NAME TOLERANCE: the losses of two runs
    paste <(losses "$1") <(losses "$2") | awk -v t="$3" '
        {d = $1 - $2; if (d < 0) d = -d; if (d > most * $1) most = d / $1; if (NF != 2) bad = 1}
        END {print "at most " most; exit bad || NR != 52 || most > t}'
}
check "50 steps with dx in fp8" train fp8
check "the same in bf16" train exact model.compute=exact
check "losses are within 0.3 %" close exact fp8 3e-3
last() { echo "$1/checkpoint-50/adapter_model.safetensors"; }
check "and are not the same" differ "$(last fp8)" "$(last exact)"
check "once more" train again
check "the same bits" same "$(last fp8)" "$(last again)"
cp -r fp8 resumed && rm -rf resumed/checkpoint-50
check "resumed from step 25" train resumed --resume
check "the same bits, too" same "$(last fp8)" "$(last resumed)"
rm -rf resumed/checkpoint-50
refused "not resumed in another way" 2 "model.compute: exact, it began with fp8" train resumed --resume model.compute=exact
check "quantised layers" train nf4 model.quantize=nf4 train.max_steps=3
check "half floats" train half model.dtype=fp16 train.max_steps=3
sed 's/^adapter: .*/adapter: {method: embeddings, rows: [5, 9]}/' tiny.yaml >rows.yaml
check "rows of the embedding alone" emulated "$GRAFT" train rows.yaml output_dir=rows train.max_steps=3
check "merged where the card is" emulated "$GRAFT" merge --adapter fp8 --dtype fp32 --out merged
check "and where it is not" "$GRAFT" merge --adapter fp8 --dtype fp32 --out merged-here
check "is the same" same merged/model.safetensors merged-here/model.safetensors
emulated "$GRAFT" plan tiny.yaml output_dir=x >plan.txt 2>&1
check "a plan counts the second copy" grep -q "once more in fp8" plan.txt
GRAFT_DEVICE=cuda emulated "$GRAFT" doctor >doctor.txt 2>&1
check "doctor says that there is fp8" grep -q "^compute    exact, fp8$" doctor.txt

# ---- what is refused ----
sed 's/^adapter: .*/adapter: {method: full}/' tiny.yaml >full.yaml
refused "in float32" 2 "fp8 goes with bf16 or fp16" train x model.dtype=fp32
refused "for every weight" 2 "fp8 is for a frozen base" \
    emulated "$GRAFT" train full.yaml output_dir=x
refused "on the CPU" 2 "fp8 is of cards" train x device=cpu
refused "where auto is the CPU" 2 "fp8 is of cards of compute capability 9.0 (H100, H200), which cpu-" \
    "$GRAFT" train tiny.yaml device=auto output_dir=x
refused "on compute capability 8.0" 2 "fp8 is of cards of compute capability 9.0 (H100, H200), which cuda:0 is not" \
    env -u SHELLOPTS "$emulator" --cc 8.0 -- "$GRAFT" train tiny.yaml output_dir=x
refused "a forward in fp8" 2 "fp8-full is not offered" train x model.compute=fp8-full
refused "beside training" 2 "fp8 is of training" emulated "$GRAFT" eval --model "$TINY" --device cuda --compute fp8 \
    --data "$TINY/train.jsonl"

# ---- what a step calls, of the same samples each: that of 4 steps less that of 3 ----
calls() { # calls CALL [options]
    local call=$1 n
    shift
    for n in 3 4; do
        CUDAEMU_TRACE=1 train counted adapter.dropout=0 data.eval=null eval.every=0 train.batch_size=20 log.every=100 \
            save.every=100 --overwrite "train.max_steps=$n" "$@" 2>&1 | grep -oE "$call\\b" | wc -l
    done | paste -s -d ' ' | awk '{print $2 - $1}'
}
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "$2, expected $3"; fi; }
is "a step allocates nothing" "$(calls 'cuda(Malloc|HostAlloc|Free)')" 0
is "products of a step: the adapters' part of dx is one of its own, of 7 groups" "$(calls cublasLtMatmul)" 24
finish
