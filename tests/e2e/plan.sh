#!/bin/bash
# graft plan: its memory beside the peak of real runs on a model of 156 MB, what it says when that does not fit or data is missing,
# and that memory is planned before anything is read.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
PEAK=$BUILD/tests/peak
large_model large 9984
cat >large.yaml <<Y
model: {base: large}
adapter: {rank: 4, alpha: 8}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 2, batch_size: 2, micro_batch_tokens: 128, learning_rate: 1.0e-4}
eval: {every: 1}
output_dir: run
threads: 2
Y
sed -e 's/^model.*/model: {base: '"${TINY//\//\\/}"'}/' -e 's/^output_dir.*/output_dir: tiny/' \
    -e '/micro_batch/s/micro_batch_tokens: 128, //' large.yaml >tiny.yaml
number() { sed -nE 's/^ *"'"$1"'": ([0-9.]+),?$/\1/p' plan.json | head -1; } # the first of that name
plan_total() {
    "$GRAFT" plan "$@" --json 2>plan.log >plan.json && sed -n '/"memory": {/,/}/s/.*"total": \([0-9]*\).*/\1/p' plan.json
}
# peak NAME key=value ...: the plan is within 10 % of what the run takes
peak() {
    local name=$1 planned measured
    shift
    planned=$(plan_total large.yaml "$@")
    if ! "$PEAK" peak.txt "$GRAFT" train large.yaml --overwrite "$@" >run.log 2>&1; then
        not_ok "$name" "the run failed" run.log
        return
    fi
    measured=$(cat peak.txt)
    if awk -v p="${planned:-0}" -v m="$measured" 'BEGIN {exit !(p > 0.9 * m && p < 1.1 * m)}'; then ok "$name"; else
        not_ok "$name" "planned ${planned:-nothing}, measured $measured bytes" plan.json
    fi
}
# says NAME CODE WORDS COMMAND...: it ends with CODE and says WORDS
says() {
    local name=$1 code=$2 words=$3 found
    shift 3
    "$@" >says.log 2>&1
    found=$?
    if [ $found = "$code" ] && grep -qF -- "$words" says.log; then
        ok "$name"
    else
        not_ok "$name" "code $found, expected $code and: $words" says.log
    fi
}

# ---- memory beside the peak ----
if [ "${GRAFT_SANITIZE:-0}" = 1 ]; then
    skip "plans beside peaks" "sanitizers take memory of their own"
else
    peak "LoRA on a folder" model.dtype=bf16
    peak "the same in float32, with everything computed again" model.dtype=fp32 train.gradient_checkpointing=full
    check "a GGUF" "$GRAFT" merge --model large --dtype q8_0 --out large.gguf
    peak "LoRA on a GGUF" model.base=large.gguf
    peak "nf4" model.quantize=nf4
    peak "every weight" adapter.method=full
fi

# ---- what it says ----
check "plan as text" bash -c '"$0" plan tiny.yaml >text' "$GRAFT"
for words in "^steps  *2 " "^memory  *[0-9.]* GiB at most" "^  base  *[0-9.]* MiB  mapped" "^  trained state " "^  evaluation " \
    "^fits  *yes: " \
    "^time  *about .*measured on this machine" "^disk  *[0-9.]* MiB: checkpoints of .* free are "; do
    check "it says $words" grep -qE "$words" text
done
check "plan as JSON" plan_total tiny.yaml
check "the total is more than its parts that are always there" \
    test "$(number total)" -gt $(($(number base) + $(number trained) + $(number scratch)))
check "a step takes time" awk -v t="$(number seconds_per_step)" 'BEGIN {exit !(t > 0)}'
says "data that is missing" 0 "data: none.jsonl is not here: no steps" "$GRAFT" plan tiny.yaml data.train=none.jsonl
says "steps of an assumed set" 0 "steps                 75 (25 an epoch" \
    "$GRAFT" plan tiny.yaml data.train=none.jsonl train.max_steps=null \
    train.num_train_epochs=3 --samples 50 --mean-tokens 40
says "more tokens than a sample may have" 2 "samples are cut to data.max_length, which is 2048" \
    "$GRAFT" plan tiny.yaml data.max_length=2048 --samples 5 --mean-tokens 2049
says "ranks without work" 0 "train.batch_size is 2: 6 of 8 ranks have nothing to compute in a step" \
    "$GRAFT" plan tiny.yaml --ranks 8
says "tokens without samples" 2 "--samples" "$GRAFT" plan tiny.yaml --mean-tokens 40
says "a shape alone" 0 "weights counted as bf16" "$GRAFT" plan tiny.yaml model.base="$TINY/config.json"
# norms of heads that are wider than the stream are measured too
sed 's/"head_dim": 16/"head_dim": 128/; s/"hidden_size": 32/"hidden_size": 8/' \
    "$SOURCE/tests/golden/tiny-qwen3/config.json" >wide.json
says "heads wider than the stream" 0 "measured on this machine" \
    "$GRAFT" plan tiny.yaml model.base=wide.json adapter.method=full data.max_length=128
# cards that are not here: a 7B is 12.3 GiB in bf16, and a token keeps 4.2 MB and more of a graph that computes nothing again
cat >llama-7b.json <<'EOF'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
 "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "hidden_act": "silu"}
EOF
card() { # card RECIPE DEVICE KEY [option]: the first number of that name in the plan as JSON, for samples of 256 tokens
    "$GRAFT" plan "$SOURCE/recipes/belle/$1.yaml" model.base=llama-7b.json --device "$2" --samples 2000000 --mean-tokens 256 \
        --json ${4:+"$4"} 2>/dev/null | sed -nE "s/.*\"$3\": ([0-9.]+).*/\1/p" | head -n 1
}
between() { # between NAME LOW HIGH VALUE
    if awk -v x="$4" "BEGIN {exit !(x >= $2 && x <= $3)}"; then ok "$1"; else not_ok "$1" "$4, expected $2 to $3"; fi
}
between "LoRA of a 7B on 40 GB" 35.4e9 35.7e9 "$(card llama-7b-lora-2m a100-40gb total)"
between "seconds of a step of 128 samples at half the products' rate" 5.4 5.9 "$(card llama-7b-lora-2m a100-40gb seconds_per_step)"
# fp8 keeps a second copy of a byte a weight, of the layers but for the first q, k and v
exact=$(card llama-7b-lora-2m h200 made model.compute=exact) fp8=$(card llama-7b-lora-2m h200 made model.compute=fp8)
between "fp8 takes 6.4 billion bytes more" 6.42e9 6.5e9 $((fp8 - exact))
exact=$(card llama-7b-lora-2m h100 seconds_per_step model.compute=exact)
fp8=$(card llama-7b-lora-2m h100 seconds_per_step model.compute=fp8)
between "and gains a third of half of a step" 0.8 0.85 "$(awk "BEGIN {print $fp8 / $exact}")"
says "fp8 on a card that has none" 2 "which a100-80gb is not" \
    "$GRAFT" plan tiny.yaml --device a100-80gb model.compute=fp8
between "every weight of a 7B on 141 GB" 110e9 140e9 "$(card llama-7b-ft-2m h200 total)"
says "rows of tokens on a card that is not here" 0 "of the rate of h100's products" \
    "$GRAFT" plan tiny.yaml --device h100 'adapter.trainable_tokens=[5, 9, 12]'
says "every weight of a 7B on 40 GB: no" 2 "NO: the limit is 36.95 GiB, 15/16 of the card" \
    "$GRAFT" plan "$SOURCE/recipes/belle/llama-7b-ft-2m.yaml" model.base=llama-7b.json --device a100-40gb --samples 1000
says "more than the limit: a plan all the same" 2 "fits                  NO: train.memory_limit allows" \
    "$GRAFT" plan large.yaml train.memory_limit=100MiB
says "with what to change" 2 "less is needed with train.gradient_checkpointing=full (" \
    "$GRAFT" plan large.yaml train.memory_limit=100MiB \
    train.gradient_checkpointing=none

# ---- several ranks ----
# BELLE's table on eight cards of 40 GB, samples of 256 tokens: hours of an epoch at half of the rate of products, sums in float32
# (limits: 13B LoRA 1.37 s a step, 7B LoRA 0.709 s, every weight 0.283 s), and that nothing is computed again
of_eight() { # of_eight RECIPE SAMPLES [key=value]
    "$GRAFT" plan "$SOURCE/recipes/belle/$1.yaml" --device a100-40gb --ranks 8 --samples "$2" --mean-tokens 256 "${@:3}" 2>/dev/null
}
hours() { # hours RECIPE SAMPLES EXPECTED: within 10 %
    between "eight cards: an epoch of $1" "$(awk "BEGIN {print 0.9 * $3}")" "$(awk "BEGIN {print 1.1 * $3}")" \
        "$(of_eight "$1" "$2" --json | jq '.seconds_per_epoch / 3600')"
}
hours llama-13b-lora-2m 2000000 5.96
hours llama-7b-lora-4m 4000000 6.16
hours llama-7b-lora-2m 2000000 3.08
hours llama-7b-lora-0.6m 600000 0.92
hours llama-7b-ft-2m 2000000 4.92
hours llama-7b-ft-0.6m 600000 1.48
hours llama-7b-ft-2m-lora-math 250000 0.39
hours llama-7b-ft-2m-ft-math 250000 0.62
of_eight llama-7b-ft-2m 2000000 >text
check "every weight of a 7B: zero2" grep -q '^ranks  *8, sharding zero2: ' text
check "with nothing computed again" grep -q '^batch .*, dealt to the ranks .* gradient_checkpointing none$' text
of_eight llama-7b-ft-2m 2000000 train.sharding=none >text
check "without sharding: refused" test $? = 2
check "without sharding: no" grep -q '^fits  *NO: ' text
check "and zero2 is proposed" grep -qE 'less is needed with train.sharding=zero2 \([0-9.]* GiB\)$' text
sent() { of_eight "$@" --json | jq .bytes_sent_per_step; }
between "it sends 35.4 GB a step" 35.3e9 35.5e9 "$(sent llama-7b-ft-2m 2000000)"
between "an adapter's gradients 0.125 GB" 0.1245e9 0.1255e9 "$(sent llama-7b-lora-2m 2000000)"
check "every weight of a 13B needs zero3" bash -c '"$@" | grep "sharding zero3: " >/dev/null' - \
    "$GRAFT" plan "$SOURCE/recipes/belle/llama-7b-ft-2m.yaml" model.base="$SOURCE/recipes/belle/llama-13b/config.json" \
    --device a100-40gb --ranks 8 --samples 2000000 --mean-tokens 256
if [ "${GRAFT_SANITIZE:-0}" = 1 ] || ! has_ranks; then
    skip "plans of ranks beside peaks" "needs a build with MPI and without sanitizers, and mpirun"
else
    # of_ranks N SHARDING: the plan is within 5 % of what the rank takes that takes most
    of_ranks() {
        local planned measured full=(adapter.method=full train.weights=bf16 train.max_steps=1 train.batch_size=4 eval.every=0)
        planned=$(plan_total large.yaml --ranks "$1" "${full[@]}" train.sharding="$2")
        rm -f peak.[0-9]
        # shellcheck disable=SC2016
        env -u SHELLOPTS mpirun -n "$1" sh -c 'exec "$0" peak.$OMPI_COMM_WORLD_RANK "$@"' "$PEAK" "$GRAFT" train large.yaml \
            --overwrite "${full[@]}" train.sharding="$2" >run.log 2>&1
        measured=$(sort -n peak.[0-9] | tail -n 1)
        if awk -v p="${planned:-0}" -v m="${measured:-0}" 'BEGIN {exit !(p > 0.95 * m && p < 1.05 * m)}'; then
            ok "memory of $1 ranks, $2"
        else
            not_ok "memory of $1 ranks, $2" "planned ${planned:-nothing}, measured ${measured:-nothing}" plan.json run.log
        fi
    }
    of_ranks 2 zero1
    of_ranks 4 zero2
    of_ranks 4 zero3
fi

# ---- the limit ----
wanted=$(plan_total large.yaml) least=$(plan_total large.yaml train.gradient_checkpointing=full)
says "a limit that recomputing keeps" 0 "gradient_checkpointing " \
    "$GRAFT" train large.yaml --overwrite train.memory_limit=$(((wanted + least) / 2))
echo '{"broken' >broken.jsonl
says "too little for the model: said before data is read" 2 "train.memory_limit allows" \
    "$GRAFT" train large.yaml --overwrite data.train=broken.jsonl \
    train.memory_limit=50MiB
large_model huge 1048576 1000 # 750 GiB of holes
says "a session plans as well: too much to quantise is said before weights are read" 2 "GiB besides its files, and " \
    timeout 60 "$GRAFT" generate --model huge --quantize q8_0 --prompt x
says "and for int8" 2 "GiB besides its files, and " timeout 60 "$GRAFT" eval --model huge --compute int8 --data "$TINY/train.jsonl"
finish
