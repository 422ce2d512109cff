#!/bin/bash
# Calls of CUDA's libraries that fail, one a run: one clear error, no half-written result, no hang. Which calls there are a run
# without a failure tells. By default some of each; `all`: every single one (parts of tests/unit/cuda_sweep.sh); further words:
# of these kinds of runs alone. Needs the CUDA backend and the emulator, which lies outside the project.
. "$(dirname "$0")/../lib.sh"
needs_emulator "faults of CUDA"
cd "$WORK" || exit 1
cat >lora.yaml <<Y
model: {base: $TINY, dtype: bf16}
adapter: {rank: 4, alpha: 8}
data: {train: $TINY/train.jsonl, cache: none}
train: {max_steps: 2, batch_size: 4}
save: {every: 1}
log: {every: 1}
device: cuda
Y
sed 's/^adapter: .*/adapter: {method: full}/' lora.yaml >full.yaml
printf '{"prompt": "What is %s + 4?"}\n' 3 15 >prompts.jsonl

# What is run, and the file that it makes last. nf4 where matrices made once do not fit: they are expanded before each product.
kinds=(lora full fp8 nf4 generate)
export TINY GRAFT emulator
tight=(model.quantize=nf4 train.gradient_checkpointing=none train.micro_batch_tokens=600)
tight+=("train.memory_limit=$(emulated "$GRAFT" plan lora.yaml output_dir=none "${tight[@]}" train.memory_limit=4MiB 2>&1 |
    sed -nE 's/.*training needs ([0-9.]+) MiB.*/\1/p' | awk '{print $1 + 0.1}')MiB")
run_kind() { # run_kind KIND FOLDER
    case $1 in
    lora) "${run[@]}" -- "$GRAFT" train lora.yaml "output_dir=$2" ;;
    full) "${run[@]}" -- "$GRAFT" train full.yaml "output_dir=$2" ;;
    fp8) "${run[@]}" -- "$GRAFT" train lora.yaml "output_dir=$2" model.compute=fp8 ;;
    nf4) "${run[@]}" -- "$GRAFT" train lora.yaml "output_dir=$2" "${tight[@]}" ;;
    generate) # of quantised weights, sampled, by an adapter
        "${run[@]}" -- "$GRAFT" generate --model "$TINY" --adapter lora.good --quantize nf4 --device cuda --prompts prompts.jsonl \
            --temperature 0.7 --seed 1 --max-tokens 4 --out "$2"
        ;;
    esac
}
result() { # result KIND FOLDER
    case $1 in
    full) echo "$2/model/model.safetensors" ;;
    generate) echo "$2" ;;
    *) echo "$2/adapter/adapter_model.safetensors" ;;
    esac
}

# fails KIND CALL NUMBER OF: the run ends with an error in one line and without a result. Where a release fails, what chooses the
# tiles of a product, or a record of work that comes again, it may end well, with the result of a good run.
fails() {
    local kind=$1 call=$2 code at=$1.$2.$3 made good=0
    local run=(env -u SHELLOPTS timeout 300 "$emulator" --on-fault error --fail "$call:$3")
    run_kind "$kind" "$at" >"$at.log" 2>&1
    code=$? made=$(result "$kind" "$at")
    if [ $code = 0 ]; then
        [[ ! $call =~ Free|Destroy|DeviceSynchronize|SetDevice|Heuristic|BeginCapture|GraphInstantiate ]] ||
            ! same "$made" "$(result "$kind" "$kind.good")" >"$at.same" || good=1
    elif [ $code -le 3 ] && [ "$(grep -c '^graft: error: ' "$at.log")" = 1 ] && [ ! -e "$made" ]; then
        [ -n "$(find . -path "./$at*" -name '*.tmp*')" ] || good=1
    elif [ $code = 97 ] && grep -q 'ERROR in kernel .*add_sorted_rows' "$at.log"; then
        [ $call != kernel ] || good=1 # a card runs nothing after a kernel that failed; the emulator does, here on rows not sorted
    fi
    [ $good = 1 ] || echo "$kind: $call, call $3 of $4 fails|exit code $code|$at.log" >>wrong
    [ $good = 0 ] || echo "$kind $call" >>right
    rm -rf "$at"
}
export -f fails run_kind result same

all= words=" $* "
[[ $words != *" all "* ]] || all=1 words=${words/ all / }
chosen() { [[ $words =~ ^\ *$|\ $1\  ]]; }
for kind in "${kinds[@]}"; do
    chosen $kind || [ $kind = lora ] || continue # its adapter generates
    run=(env -u SHELLOPTS CUDAEMU_TRACE=1 "$emulator")
    run_kind $kind $kind.good >$kind.trace 2>&1
    name="$kind without a failure"
    if [ -s "$(result $kind $kind.good)" ]; then ok "$name"; else not_ok "$name" "no result" $kind.trace; fi
    chosen $kind || continue
    # Of the first kind some of each call; of the others some of those that do the work.
    sed -nE 's/^cudaemu: \[device [0-9]+\] ([A-Za-z]+) #.*/\1/p' $kind.trace | sort | uniq -c |
        awk -v kind=$kind -v all=$all '
            all {for (i = 1; i <= $1; i++) print kind, $2, i, $1; next}
            kind != "lora" && $2 !~ /^(cudaMalloc|cudaMemcpyAsync|kernel|cublasLtMatmul|cudaGraph[A-Za-z]*)$/ {next}
            {
                last = 0
                for (i = kind != "lora"; i <= 3; i++)
                    if ((n = i ? int(($1 * i + 2) / 3) : 1) > last) print kind, $2, last = n, $1
            }'
done >found
grep -E '^(ok|not ok|    )' found
grep -vE '^(ok|not ok|    )' found >to-do
n_failed=$((n_failed + $(grep -c '^not ok' found)))
touch wrong right
xargs -r -L 1 -P "$(nproc)" bash -c "$(declare -p tight); "'fails "$@"' _ <to-do
while IFS='|' read -r name why log; do not_ok "$name" "$why" "$log"; done <wrong
sort right | uniq -c | while read -r n kind call; do ok "$kind: $call fails, $n runs"; done
check "each of them came to an end" test "$(cat right wrong | wc -l)" = "$(wc -l <to-do)" -a -s right
if ! chosen lora || [ "$all" = 1 ]; then finish; fi

# ---- out of memory: what was asked for what, what is free of how much, what to change; nothing is begun ----
short='error: device cuda(:0)?: out of memory: [0-9.]+ MiB for [^;]+; [0-9.]+ of [0-9.]+ MiB are free there'
# lacks NAME WORDS [options of the emulator] -- COMMAND ...: it ends with such an error, and says the words.
lacks() {
    local name=$1 words=$2 options=() code
    shift 2
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    env -u SHELLOPTS timeout 600 "$emulator" "${options[@]}" -- "$@" >short.log 2>&1
    code=$?
    [ $code = 0 ] && ended=well && return 0
    ended=failed
    if [ $code = 1 ] && [ "$(grep -cE "$short$words" short.log)" = 1 ] && [ "$(grep -c 'error: ' short.log)" = 1 ] &&
        [ ! -e out.jsonl ] && [ ! -e run/adapter ] && ! ls -d run/*checkpoint* run/*tmp* >/dev/null 2>&1; then
        return 0
    fi
    not_ok "$name" "exit code $code" short.log
    return 1
}
every() { # every NAME WORDS FROM STEP COMMAND ...: every STEPth allocation of the card fails, from that one on
    local name=$1 words=$2 n=$3 step=$4 failed=0 good=1
    shift 4
    for (( ; n < 200; n += step)); do
        rm -rf run out.jsonl
        lacks "$name, allocation $n" "$words" --fail "cudaMalloc:$n" -- "$@" || good=0
        [ $ended = failed ] || break
        failed=$((failed + 1))
    done
    [ $good = 0 ] || if [ $failed -gt 3 ]; then ok "$name: $failed allocations that fail"; else not_ok "$name" "$failed failed"; fi
}
cp "$TINY/train.jsonl" data.jsonl
echo '{"prompt": "What is 3 + 4?"}' >prompts.jsonl
every training '; less is needed with train.gradient_checkpointing=full' 2 2 \
    "$GRAFT" train lora.yaml output_dir=run train.max_steps=1
every "training every weight" '; less is needed with train\.' 2 7 \
    "$GRAFT" train full.yaml output_dir=run train.max_steps=1
every generating '; less is needed with smaller --max-tokens, smaller --batch, --quantize nf4' 2 4 \
    "$GRAFT" generate --model "$TINY" --device cuda --prompts prompts.jsonl --max-tokens 4 --out out.jsonl
every evaluating '; less is needed with smaller --max-tokens, smaller --batch-tokens, smaller --max-length, --quantize nf4' 2 3 \
    "$GRAFT" eval --model "$TINY" --device cuda --data data.jsonl --limit 3 --quantize nf4
rm -rf run
lacks opening '' --fail cudaMalloc:1 -- "$GRAFT" train lora.yaml output_dir=run && ok "and opening the card"
for mem in 33 34 36; do # whatever memory_limit says, no more is planned for than the card has
    refused "a card of $mem MiB" 2 "there are $mem.0 MiB; less is needed with" env -u SHELLOPTS "$emulator" --mem ${mem}M -- \
        "$GRAFT" train lora.yaml output_dir=run train.memory_limit=1GiB data.max_length=512 adapter.rank=256
done
generate_on() { env -u SHELLOPTS "$emulator" --mem "$1" -- "$GRAFT" generate --model "$TINY" --device cuda --prompt x; }
refused "a full card" 1 "device cuda: out of memory: 32.0 MiB for the workspace of cuBLASLt; 31.0 of 31.0 MiB" generate_on 31M
refused "one that has no room for the weights" 2 "are free there; less is needed with model.quantize: nf4, or device: cpu" \
    generate_on 32M
refused "or for them alone" 1 "are free there; less is needed with smaller --max-tokens, smaller --batch" generate_on 33M

# What was saved before the failure is whole: the run goes on from there to the same bits.
refused "one that fails in its second step" 1 "graft: error: " env -u SHELLOPTS "$emulator" --on-fault error \
    --fail "kernel:$(awk '$1 == "lora" && $2 == "kernel" {n = int($4 * 0.8)} END {print n}' to-do)" -- \
    "$GRAFT" train lora.yaml output_dir=run
check "it has a checkpoint" test -d run/checkpoint-1
check "and is resumed" emulated "$GRAFT" train lora.yaml output_dir=run --resume
check "to the same bits" same lora.good/adapter/adapter_model.safetensors run/adapter/adapter_model.safetensors
finish
