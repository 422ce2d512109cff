#!/bin/bash
# plan.sh BUILD MODEL.gguf [key=value ...] - what `graft plan` says of four kinds of runs beside the peak resident memory that they
# take: LoRA on a folder in bf16, LoRA on the GGUF, nf4, every weight. Each must be within 5 %. Takes some minutes and 4 GiB.
set -eu
graft=$(realpath "$1/graft") peak=$(realpath "$1/tests/peak") model=$(realpath "$2")
shift 2
work=$(mktemp -d "${TMPDIR:-/tmp}/graft-plan-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
"$graft" merge --model "$model" --out bf16 --dtype bf16 >merge.log 2>&1
"$graft" data make school-math --n 600 --seed 1 --language en --steps 1-3 --out train.jsonl
cat >recipe.yaml <<Y
adapter: {rank: 8, alpha: 16, target_modules: all-linear}
data: {train: train.jsonl, eval: 0.05, cache: none}
train: {max_steps: 3, batch_size: 16, learning_rate: 1.0e-5}
eval: {every: 2}
output_dir: run
Y
failed=0
# run NAME key=value ...: planned and measured bytes
run() {
    local name=$1 planned measured off
    shift
    planned=$("$graft" plan recipe.yaml "$@" --json 2>/dev/null | sed -n '/"memory": {/,/}/s/.*"total": \([0-9]*\).*/\1/p')
    "$peak" peak.txt "$graft" train recipe.yaml --overwrite "$@" >run.log 2>&1 || { cat run.log; exit 1; }
    measured=$(cat peak.txt)
    off=$(awk -v p="$planned" -v m="$measured" 'BEGIN {printf "%+.1f", 100 * (p - m) / m}')
    printf '%-6s planned %7.1f MB  measured %7.1f MB  %s %%\n' "$name" "$(awk "BEGIN {print $planned / 1e6}")" \
        "$(awk "BEGIN {print $measured / 1e6}")" "$off"
    awk -v o="$off" 'BEGIN {exit !(o > 5 || o < -5)}' && failed=1
    return 0
}
run lora model.base=bf16 "$@"
run gguf model.base="$model" "$@"
run nf4 model.base=bf16 model.quantize=nf4 "$@"
run full model.base=bf16 adapter.method=full "$@"
exit $failed
