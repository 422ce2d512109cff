#!/bin/bash
# fuzz.sh TARGET [SECONDS]: one fuzz target for a while. Its seeds are files of tests/golden, and what this build's graft
# makes of them. An input that broke it stays in $BUILD, named TARGET-crash-*: run $BUILD/tests/TARGET on it.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
target=$1 seconds=${2:-10} golden=$SOURCE/tests/golden
mkdir seeds
# must COMMAND ...: without seeds there is no test.
must() {
    "$@" >>seeds.log 2>&1 && return
    not_ok "$target" "making seeds: $* failed" seeds.log
    finish
}
train() { # makes run/ with recipe.yaml, adapter/ and checkpoint-2/state.h5
    must "$GRAFT" train "$SOURCE/recipes/quickstart.yaml" "model.base=$TINY" model.dtype=fp32 adapter.rank=2 \
        "data.train=$TINY/train.jsonl" data.eval=0.2 data.cache=none train.max_steps=2 train.batch_size=2 eval.every=2 \
        save.every=2 output_dir=run
}
case $target in
fuzz_chat)
    must cp "$SOURCE"/core/text/templates/*.jinja seeds
    for t in "$golden"/chat/*.jinja; do must cp "$t" "seeds/public-${t##*/}"; done
    printf '%s: "<%s>{content}{eos}"\n' system s user u assistant a >seeds/template.yaml
    ;;
fuzz_data)
    for format in 0 1 2 3 4 5 6; do # the first byte chooses it
        {
            printf "\\$format"
            head -n 3 "$TINY/train.jsonl"
            echo '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "#### 7"}]}'
            echo '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'
        } >seeds/$format
    done
    {
        printf '\0'
        printf 'prompt,completion\n"a ""b"",\n",c\nd,e\n'
    } >seeds/csv
    {
        printf '\0'
        head -n 3 "$TINY/train.jsonl" | gzip -n
    } >seeds/gzip
    {
        printf '\0'
        printf '{"tools": "[{}]", "messages": [{"role": "assistant", "content": [{"type": "text", "text": "a"}],'
        printf '"tool_calls": [{"function": {"name": "f"}}], "weight": 0}, {"role": "tool_call",'
        printf ' "content": "{\\"name\\": \\"f\\", \\"arguments\\": {}}"}]}\n'
    } >seeds/tools
    ;;
fuzz_csv)
    printf ',a,"b ""c"",\r\nd"\r\n\n,"",x"y\n' >seeds/comma
    printf ';instruction;output\n"1;2";3\n' >seeds/semicolon
    ;;
fuzz_gguf)
    train
    must "$GRAFT" export --adapter run --model "$TINY" --format gguf --out seeds/lora.gguf
    must "$GRAFT" merge --model "$TINY" --dtype q8_0 --out seeds/model.gguf
    ;;
fuzz_h5) train && must cp run/checkpoint-2/state.h5 seeds ;;
fuzz_recipe) train && must cp "$SOURCE"/recipes/*.yaml run/recipe.yaml seeds ;;
fuzz_safetensors) train && must cp run/adapter/adapter_model.safetensors seeds ;;
fuzz_spm) for t in "$golden"/tokenizers/sp-*; do must cp "$t/tokenizer.model" "seeds/${t##*/}"; done ;;
fuzz_vocab)
    for t in "$golden"/vocab/*.model "$golden"/vocab/bpe.json; do must cp "$t" seeds; done
    ;;
fuzz_store) # a change to each array and attribute of the files
    for i in $(seq 0 31); do printf "\\x$(printf %02x "$i")\\x20\\x01\\x02\\0\\0\\0\\0\\0\\0" >"seeds/$i"; done
    ;;
fuzz_tokenizer) for t in "$golden"/tokenizers/*; do must cp "$t/tokenizer.json" "seeds/${t##*/}"; done ;;
*) must false "(tests/fuzz/fuzz.sh knows none for $target)" ;;
esac
if "$BUILD/tests/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -seed=1 -print_final_stats=1 \
    -artifact_prefix="$BUILD/$target-" seeds >fuzz.log 2>&1; then
    ok "$target ($(sed -n 's/^stat::number_of_executed_units: *//p' fuzz.log) inputs)"
else
    grep -vE '^#[0-9]+[^:]*(NEW|REDUCE|RELOAD|pulse|INITED)' fuzz.log | tail -n 40 >end.log
    not_ok "$target" "fails on $(sed -n 's/.*Test unit written to //p' fuzz.log | tail -n 1)" end.log
fi
finish
