#!/bin/bash
# The CUDA backend as compiled, on the CPU: the tests of the kernels and of the model, then runs of the program. Needs the library
# (CUDA's toolkit) and the emulator, which lies outside the project. GRAFT_CARD=card: the same on the card at hand, for
# tests/gpu-check.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
if [ "${GRAFT_CARD:=}" = card ]; then
    export GRAFT_CUDA_LIB=$BUILD/libgraft_cuda.so
    emulated() { "$@"; }
else
    needs_emulator "the CUDA backend"
fi

# ---- kernels and model ----
parts=(test_ops test_bits test_queues test_decoder test_training test_merge test_adapters test_adapter_files test_params test_rows
    test_optimizers test_sample test_finite_diff test_card)
# The emulator keeps the stacks of each device that was opened, and the model's tests open many: by first letters.
if [ "$GRAFT_CARD" = card ]; then parts+=(test_model); else
    mapfile -t -O ${#parts[@]} parts < <(sed -nE 's/^ *cmocka_unit_test\((.).*/test_model:\1*/p' \
        "$SOURCE/tests/unit/test_model.c" | sort -u)
fi
one_part() { # in the repository, where tests find their files
    local name=${1%%:*} filter=${1#*:} file=$WORK/${1//[^a-z_:]/}
    [ "$filter" = "$1" ] || export GRAFT_TEST=$filter
    (cd "$SOURCE" && GRAFT_DEVICE=cuda emulated "$BUILD/tests/$name") >"$file.log" 2>&1
    local rc=$?
    grep -qE '^\[  (PASSED|SKIPPED) +\] [1-9]' "$file.log" || rc="$rc, and ran no test"
    echo "$rc" >"$file.rc"
    [ "$rc" != 0 ] || echo "ok $1 on cuda" # at once: a run on a card that is cut off tells what it has seen
}
export -f one_part emulated
export emulator GRAFT_CARD SOURCE BUILD WORK
printf '%s\n' "${parts[@]}" | xargs -P "$(nproc)" -I{} bash -c 'one_part "$1"' _ {}
for part in "${parts[@]}"; do
    file=${part//[^a-z_:]/}
    [ "$(cat "$file.rc")" != 0 ] || continue
    grep -vE '^\[ +(RUN|OK|SKIPPED) +\]' "$file.log" >"$file.said"
    not_ok "$part on cuda" "gave $(cat "$file.rc")" "$file.said"
done

# ---- runs ----
cat >tiny.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 8, batch_size: 5, learning_rate: 1.0e-2}
eval: {every: 4}
save: {every: 4}
log: {every: 1}
Y
sed 's/^adapter: .*/adapter: {method: full}/' tiny.yaml >full.yaml
recipe=tiny.yaml
train() { # train NAME DEVICE [options]
    local name=$1 device=$2
    shift 2
    emulated "$GRAFT" train $recipe "device=$device" "output_dir=$name" "$@"
}
losses() { sed -nE 's/.*"(eval_)?loss": ([^,]*),.*/\2/p' "$1/metrics.jsonl"; }
close() { # close NAME NAME TOLERANCE: the losses of two runs
    paste <(losses "$1") <(losses "$2") | awk -v t="$3" '
        {d = $1 - $2; if (d < 0) d = -d; if (NF != 2 || d > t * $1) {print; bad = 1}}
        END {exit bad || NR != 10}'
}
check "a run on the CPU" train cpu cpu
check "the same on cuda" train cuda cuda
check "in float32 the losses are the CPU's" close cpu cuda 2e-5
check "it says which card that was" grep -q '^machine: cuda:0' cuda/run.log
check "once more on cuda" train again cuda
check "the same bits" same cuda/adapter/adapter_model.safetensors again/adapter/adapter_model.safetensors
cp -r cuda resumed && rm -rf resumed/checkpoint-8 resumed/adapter
check "resumed from step 4" train resumed cuda --resume
check "the same bits, too" same cuda/adapter/adapter_model.safetensors resumed/adapter/adapter_model.safetensors
cp -r cuda moved && rm -rf moved/checkpoint-8 moved/adapter
check "resumed on the CPU" train moved cpu --resume
check "goes on alike" close cpu moved 2e-5
check "in bfloat16 on the CPU" train cpu16 cpu model.dtype=bf16
check "and on cuda" train cuda16 cuda model.dtype=bf16
check "the losses are near" close cpu16 cuda16 5e-3
check "in half floats" train half cuda model.dtype=fp16
check "the losses are near, too" close cpu half 5e-3
for type in nf4 q8_0; do # other types: kernels/test_bits.c
    check "$type on the CPU" train $type cpu model.quantize=$type
    check "and on cuda" train cuda$type cuda model.quantize=$type
    check "the losses are the CPU's" close $type cuda$type 2e-5
    # Where a matrix made once does not fit: what the plan asks for then is what it has with all that saves memory.
    tight=(model.quantize=$type train.gradient_checkpointing=none train.micro_batch_tokens=600)
    needs=$(emulated "$GRAFT" plan tiny.yaml device=cuda output_dir=none "${tight[@]}" train.memory_limit=4MiB 2>&1 |
        sed -nE 's/.*training needs ([0-9.]+) MiB.*/\1/p' | awk '{print $1 + 0.1 "MiB"}')
    check "$type in little memory" train expanded$type cuda "${tight[@]}" "train.memory_limit=$needs"
    check "expands its weights before each product" grep -q "expanded before each product" expanded$type/run.log
    check "and has the same bits" same cuda$type/adapter/adapter_model.safetensors expanded$type/adapter/adapter_model.safetensors
done
# What was planned for little memory is kept where there is more: the rows of a micro-batch, and what is computed again.
needs=$(emulated "$GRAFT" plan tiny.yaml device=cuda output_dir=none train.memory_limit=4MiB 2>&1 |
    sed -nE 's/.*training needs ([0-9.]+) MiB.*/\1/p' | awk '{print $1 + 0.1 "MiB"}')
check "a run in little memory" train little cuda "train.memory_limit=$needs"
check "computes again" grep -q "gradient_checkpointing full, to stay within" little/run.log
cp -r little more && rm -rf more/checkpoint-8 more/adapter
check "resumed with all of the card's" train more cuda --resume
check "it is as planned at first" grep -q "gradient_checkpointing full, as in the checkpoint" more/run.log
check "and so are its bits" same little/adapter/adapter_model.safetensors more/adapter/adapter_model.safetensors
cp -r cuda less && rm -rf less/checkpoint-8 less/adapter
check "the other way around" train less cuda --resume "train.memory_limit=$needs"
check "it says that sums are split otherwise" grep -q "from here on sums of gradients are split otherwise" less/run.log
recipe=full.yaml
check "every weight on the CPU" train full cpu train.learning_rate=1e-3
check "and on cuda" train cudafull cuda train.learning_rate=1e-3
check "the losses are the CPU's, again" close full cudafull 2e-5
for device in cpu cuda; do
    echo '{"prompt": "What is 3 + 4?"}' >prompts.jsonl
    check "text by $device" emulated "$GRAFT" generate --model "$TINY" --adapter cuda --dtype fp32 --device $device \
        --prompts prompts.jsonl --max-tokens 16 --out $device.txt
done
check "is the same" same cpu.txt cuda.txt

[ "$GRAFT_CARD" != card ] || finish # what follows counts calls and reads refusals: no card is needed

# ---- what a step calls, of the same samples each: that of 4 steps less that of 3 ----
after=3
calls() { # calls CALL [options]: of the step after so many
    local call=$1 n
    shift
    for n in "$after" $((after + 1)); do
        CUDAEMU_TRACE=1 emulated "$GRAFT" train tiny.yaml device=cuda model.dtype=bf16 adapter.dropout=0 data.eval=null \
            eval.every=0 train.batch_size=20 log.every=100 save.every=100 output_dir=counted --overwrite \
            "train.max_steps=$n" "$@" 2>&1 |
            grep -oE "$call\\b" | wc -l
    done | paste -s -d ' ' | awk '{print $2 - $1}'
}
is() { if [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "$2, expected $3"; fi; }
is "a step allocates nothing" "$(calls 'cuda(Malloc|HostAlloc|Free)')" 0
# (A new epoch settles what is under way: a step within one.)
is "and waits once, for the sums of the one before" "$(calls 'cuda(Stream|Event|Device)Synchronize' train.batch_size=4)" 1
is "products of a step with adapters on all linears" "$(calls cublasLtMatmul)" 17
is "are as many as with one" "$(calls cublasLtMatmul 'adapter.target_modules=[q_proj]')" 17
is "kernels of a step, two layers" "$(calls cudaLaunchKernel)" 82
after=5 # batches of that shape were in both places, and their layers are recorded
is "kernels of a step whose shape came before" "$(calls cudaLaunchKernel)" 18
is "products of it that the host gives: the head's" "$(calls cublasLtMatmul)" 2
is "and launches of its layers, forward and back" "$(calls cudaGraphLaunch)" 2

# ---- what a token calls that is decoded: the work of tokens before is launched again ----
for n in 11 12; do
    CUDAEMU_TRACE=1 emulated "$GRAFT" generate --model "$TINY" --adapter cuda --dtype bf16 --device cuda --prompt 'What is 3 + 4?' \
        --max-tokens $n --ignore-eos >$n.trace 2>&1
done
of_token() { echo $(($(grep -cE "\\b$1\\b" 12.trace) - $(grep -cE "\\b$1\\b" 11.trace))); }
is "a token that is decoded is one launch" "$(of_token cudaGraphLaunch)" 1
is "kernels that the host launches for it" "$(of_token 'cudaLaunchKernel|cublasLtMatmul|cudaMemsetAsync')" 0
is "copies: its number there, the next one back" "$(of_token cudaMemcpyAsync)" 2
is "waits: for that, and for three queues that are done" "$(of_token 'cuda(Stream|Event|Device)Synchronize')" 4
is "and nothing allocated" "$(of_token 'cuda(Malloc|HostAlloc|Free)')" 0

emulated "$GRAFT" plan tiny.yaml device=cuda output_dir=none --samples 1000000000 --mean-tokens 256 >plan.txt 2>&1
check "data that the host cannot hold beside the card do not fit" grep -q '^fits *NO' plan.txt
check "and what to do about it is said" grep -q 'fewer samples in data.train, or a data.cache' plan.txt
refused "int8 is refused by name" 2 "int8 is of the CPU" emulated "$GRAFT" eval --model "$TINY" --device cuda --compute int8 \
    --data "$TINY/train.jsonl"
finish
