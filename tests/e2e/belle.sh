#!/bin/bash
# The eight rows of BELLE's table as they stand, on several ranks: their shape cut to a small one, on data of BELLE's form.
. "$(dirname "$0")/../lib.sh"
needs_ranks "belle"
BELLE=$SOURCE/recipes/belle
cd "$WORK" || exit 1
check "a small model of LLaMA's shape" "$GRAFT" init --config "$BELLE/llama-small/config.json" --tokenizer "$TINY" --out small
for i in $(seq 200); do
    n=$((i * 7 % 19 + 1))
    printf '{"instruction": "Count %d: to %d.", "input": "", "output": "%s"}\n' "$i" $n "$(seq -s " " $n)"
done >instructions.jsonl
for i in $(seq 200); do
    printf '{"conversations": [{"from": "human", "value": "Count %d."}, {"from": "assistant", "value": "%s"}]}\n' "$i" \
        "$(seq -s " " $((i * 5 % 17 + 1)))"
done >talks.jsonl

# row NAME RANKS PARAMETERS FILE key=value...: a few steps, in which so many are trained; it leaves that file
row() {
    local said=$1.said log=$1.log
    env -u SHELLOPTS timeout 120 mpirun -n "$2" "$GRAFT" train "$BELLE/$1.yaml" model.base=small \
        "data.train=[instructions.jsonl, talks.jsonl]" data.cache=none train.max_steps=3 output_dir="$1" "${@:5}" >"$said" 2>"$log"
    if grep -q "^trainable parameters  $3\$" "$said" && grep -q '^final loss  *6\.[0-9]*$' "$said" && [ -e "$1/$4" ]; then
        ok "$1 on $2 ranks"
    else
        not_ok "$1 on $2 ranks" "expected $3 parameters, a loss of 6 and $4" "$said" "$log"
    fi
}
lora=$((2 * 8 * (3 * (64 + 64) + 3 * (64 + 172)))) full=$((2 * 1024 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64) + 64))
thousands() { echo "$1" | sed -E ':a; s/([0-9])([0-9]{3})(,|$)/\1,\2\3/; ta'; }
for name in llama-13b-lora-2m llama-7b-lora-4m llama-7b-lora-2m llama-7b-lora-0.6m llama-7b-ft-2m-lora-math; do
    row $name 4 "$(thousands $lora)" adapter/adapter_model.safetensors
done
row llama-7b-ft-2m 8 "$(thousands $full)" model/model.safetensors train.sharding=zero2 # as on eight cards
row llama-7b-ft-0.6m 2 "$(thousands $full)" model/model.safetensors
row llama-7b-ft-2m-ft-math 2 "$(thousands $full)" model/model.safetensors
finish
