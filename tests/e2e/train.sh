#!/bin/bash
# The graft program from recipe to merged model, on a model of 100,000 parameters.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
cat >tiny.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: $TINY/train.jsonl, eval: 0.2, cache: none}
train: {max_steps: 12, batch_size: 5, learning_rate: 1.0e-2}
eval: {every: 4}
save: {every: 4, save_total_limit: 9}
log: {every: 1}
output_dir: runs/a
Y
# train NAME [options]: a run in runs/NAME
train() {
    local name=$1
    shift
    "$GRAFT" train tiny.yaml "output_dir=runs/$name" "$@"
}
# What a run's metrics say, but for the clock.
metrics() {
    sed -E 's/"(tokens_per_second|eval_runtime|eval_samples_per_second)": [^,}]*,? ?//g; s/, \}/}/' "runs/$1/metrics.jsonl"
}
same_run() { # same_run A B: bit for bit
    metrics "$1" >"$1.metrics" && metrics "$2" >"$2.metrics" && same "$1.metrics" "$2.metrics" &&
        same "runs/$1/adapter/adapter_model.safetensors" "runs/$2/adapter/adapter_model.safetensors"
}
losses() { sed -nE 's/.*"(eval_)?loss": ([^,]*),.*/\2/p' "runs/$1/metrics.jsonl"; }
# close FILE FILE TOLERANCE: columns of numbers
close() {
    paste "$1" "$2" | awk -v t="$3" '{d = $1 - $2; if (d < 0) d = -d; if (NF != 2 || d > t * ($1 < 0 ? -$1 : $1)) {print; bad = 1}}
        END {exit bad || NR == 0}'
}
prompts() { printf '{"prompt": "%s"}\n' 'What is 3 + 4?' 'Name a colour.' '小明有12个苹果，给了弟弟5个，还剩几个？' 'Say hello.' 'x'; }
before=$(sha256sum "$TINY/model.safetensors")

# ---- training ----
check "a run ends well" train a
for f in recipe.yaml adapter/adapter_config.json adapter/adapter_model.safetensors checkpoint-4/state.h5 checkpoint-12/state.h5 \
    metrics.jsonl trainer_state.json loss.svg run.log; do
    check "the run has $f" test -s runs/a/$f
done
check "the run has TensorBoard events" bash -c 'test -s "$(ls runs/a/events.out.tfevents.* | head -1)"'
check "the adapter holds its matrices and no embedding" \
    bash -c '[ "$(stat -c %s "$0")" -lt 100000 ] && grep -q lora_B "$0" && ! grep -q embed_tokens "$0"' \
    runs/a/adapter/adapter_model.safetensors
check "training lowers the loss" awk -v a="$(losses a | head -1)" -v b="$(losses a | tail -1)" 'BEGIN {exit !(b < a)}'
check "one thread" train one threads=1
check "two threads" train two threads=2
check "one thread is two threads, bit for bit" same_run one two
check "the same recipe gives the same run, bit for bit" same_run a two
check "the run's own recipe.yaml" "$GRAFT" train runs/a/recipe.yaml output_dir=runs/again
check "repeats the run, bit for bit" same_run a again

cp -r runs/a runs/killed
rm -rf runs/killed/adapter runs/killed/checkpoint-8 runs/killed/checkpoint-12 runs/killed/trainer_state.json
check "a run killed after step 4 is resumed" train killed --resume
check "and is the uninterrupted one, bit for bit" same_run a killed

# In the background the program itself must be the child, not a shell around it.
hard=(train.max_steps=120 save.every=3 save.save_total_limit=2)
"$GRAFT" train tiny.yaml output_dir=runs/hard "${hard[@]}" >hard.log 2>&1 &
pid=$!
for _ in $(seq 200); do
    [ -n "$(ls -d runs/hard/checkpoint-*[0-9] 2>/dev/null)" ] && break
    sleep 0.02
done
kill -KILL $pid
wait $pid
check "kill -9: it did not come to its end" test $? = 137
check "kill -9 in the middle, then --resume" train hard "${hard[@]}" --resume
check "the same in one go" train soft "${hard[@]}"
check "killed and resumed is the uninterrupted run, bit for bit" same_run hard soft

check "micro-batches" train split train.micro_batch_tokens=40
losses a >a.loss
losses split >split.loss
check "micro-batches change rounding alone" close a.loss split.loss 2e-5
check "int8 products" train int8 model.compute=int8
losses int8 >int8.loss
check "int8 products stay near the exact losses" close int8.loss a.loss 1e-2
check "and are not the exact ones" differ int8.loss a.loss
check "int8 products with one thread" train int8one model.compute=int8 threads=1
check "are the same, bit for bit" same_run int8 int8one
check "weights from another run" train from adapter.init_from=runs/a train.max_steps=2
check "every weight" train full adapter.method=full train.learning_rate=1e-3 train.max_steps=4
check "every weight: a HF folder" test -s runs/full/model/config.json
check "every weight: it generates" "$GRAFT" generate --model runs/full/model --prompt 'Say hello.' --max-tokens 8
check "dry run" train dry --dry-run
check "plan" bash -c '"$0" plan tiny.yaml | grep "^steps  *12 "' "$GRAFT"
check "plan --json" bash -c '"$0" plan tiny.yaml --ranks 1 --json | grep "\"steps\": 12"' "$GRAFT"
check "a dry run writes nothing" test ! -e runs/dry
check "B = 0" train zero train.learning_rate=0 train.max_steps=2

# ---- evaluation and generation ----
evaluate() { # evaluate OUT [options]
    local out=$1
    shift
    "$GRAFT" eval --data "$TINY/train.jsonl" --out "$out" --dtype fp32 "$@"
}
check "evaluate the base" evaluate base.jsonl --model "$TINY"
check "evaluate B = 0" evaluate zero.jsonl --model "$TINY" --adapter runs/zero
check "B = 0 changes nothing, bit for bit" same base.jsonl zero.jsonl
check "evaluate in one batch" evaluate large.jsonl --model "$TINY" --adapter runs/a --batch-tokens 100000
check "evaluate sample by sample" evaluate small.jsonl --model "$TINY" --adapter runs/a --batch-tokens 1
check "a sample's loss does not depend on its batch, bit for bit" same large.jsonl small.jsonl
check "adapters scaled by 0" evaluate scaled.jsonl --model "$TINY" --adapter runs/a:0
check "change nothing, bit for bit" same base.jsonl scaled.jsonl
prompts >together.jsonl
generate() { "$GRAFT" generate --model "$TINY" --adapter runs/a --dtype fp32 --max-tokens 24 "$@"; }
check "generate in one batch" generate --prompts together.jsonl --out together.out
# one_by_one OUT COMMAND...: the command with each prompt alone
one_by_one() {
    local out=$1
    shift
    while IFS= read -r line; do
        echo "$line" >one.jsonl
        "$@" --prompts one.jsonl || return 1
    done <together.jsonl >"$out"
}
check "generate one by one" one_by_one alone.out generate
check "prompts alone == prompts together" same together.out alone.out
check "sample" generate --prompts together.jsonl --temperature 0.8 --top-p 0.9 --seed 7 --out s1.out
check "sample one at a time, with one thread" generate --prompts together.jsonl --temperature 0.8 --top-p 0.9 --seed 7 --batch 1 \
    --threads 1 --out s2.out
check "sampling depends on the seed alone" same s1.out s2.out
check "generate to a pipe" bash -c '"$@" >text.out 2>/dev/null' _ \
    "$GRAFT" generate --model "$TINY" --adapter runs/a --dtype fp32 --max-tokens 24 --prompt 'What is 3 + 4?'
check "a pipe sees the completion alone" test "$(wc -l <text.out)" = "$(($(sed -n 1p together.out | grep -o '\\n' | wc -l) + 1))"

check "with --ignore-eos as many tokens as asked for" \
    bash -c '[ "$("$@" | grep -c "\"tokens\": *24")" = "$(wc -l <together.jsonl)" ]' _ \
    "$GRAFT" generate --model "$TINY" --adapter runs/a --dtype fp32 --max-tokens 24 --prompts together.jsonl --ignore-eos

mkdir 'a folder' && cp tiny.yaml 'a folder/配方 é.yaml'
check "spaces and other scripts in paths" "$GRAFT" train 'a folder/配方 é.yaml' 'output_dir=a folder/run: ü' train.max_steps=2
check "generate from there" "$GRAFT" generate 'a folder/run: ü' --prompt x --max-tokens 2
mv 'a folder/run: ü' moved
check "a renamed run still remembers its base" "$GRAFT" generate moved --prompt x --max-tokens 2

# ---- merging, exporting, inspecting ----
mkdir out
check "merge to a HF folder" "$GRAFT" merge --model "$TINY" --adapter runs/a --dtype fp32 --out out/merged
check "merge to GGUF F32" "$GRAFT" merge --model "$TINY" --adapter runs/a --dtype fp32 --out out/merged.gguf
check "merge to GGUF Q8_0" "$GRAFT" merge --model "$TINY" --adapter runs/a --dtype q8_0 --out out/q8.gguf
check "a quantised base says what merging into it writes" \
    bash -c '"$0" merge --model out/q8.gguf --adapter runs/a --out out/twice.gguf --dtype bf16 --json | grep mean_kl' "$GRAFT"
says() { local words=$1; shift; "$@" >says.log 2>&1 && grep -q "$words" says.log; }
check "which type it writes where none is named, and why" says 'out/q8.gguf is quantised (q8_0).*written as bf16' \
    "$GRAFT" merge --model out/q8.gguf --adapter runs/a --out out/own
check "the logit difference has a yardstick" says 'largest logit is .* tokens get another likeliest' \
    "$GRAFT" merge --model out/q8.gguf --out out/q4.gguf --dtype q4_k_m
check "the name of --out says the format of an adapter" says 'out/named.gguf' \
    "$GRAFT" export --adapter runs/a --model "$TINY" --out out/named.gguf
check "it is a GGUF" cmp -n 4 out/named.gguf out/q4.gguf
check "convert the base" "$GRAFT" merge --model "$TINY" --dtype bf16 --out out/base.gguf
for m in merged merged.gguf; do
    rm -f m.jsonl m.out m.nll
    check "evaluate $m" evaluate m.jsonl --model out/$m
    sed -nE 's/.*"nll": ?([^,}]*).*/\1/p' m.jsonl >m.nll
    sed -nE 's/.*"nll": ?([^,}]*).*/\1/p' large.jsonl >large.nll
    check "$m has the loss of base + adapter" close large.nll m.nll 1e-4
    check "$m generates" "$GRAFT" generate --model out/$m --dtype fp32 --max-tokens 24 --prompts together.jsonl --out m.out
    check "$m generates the same text" same together.out m.out
done
check "a quantised model generates with int8 products" \
    "$GRAFT" generate --model out/q8.gguf --max-tokens 24 --prompts together.jsonl --out q8.out
check "one by one" one_by_one alone.out "$GRAFT" generate --model out/q8.gguf --max-tokens 24
check "prompts alone == prompts together with int8 products" same q8.out alone.out
check "export a PEFT folder" "$GRAFT" export --adapter runs/a --format peft --out out/peft
check "it holds the same matrices" same runs/a/adapter/adapter_model.safetensors out/peft/adapter_model.safetensors
check "export a GGUF adapter" "$GRAFT" export --adapter runs/a --model "$TINY" --format gguf --out out/lora.gguf
if [ "${GRAFT_SANITIZE:-0}" = 1 ] || [ "${GRAFT_DEVICE:-cpu}" != cpu ]; then
    skip "merging takes little memory" "sanitizers, and devices beside the host, have their own"
else
    large_model large
    check "merging 156 MB of weights takes less than 100 MB of memory" \
        bash -c 'ulimit -d 100000; exec "$0" merge --model large --dtype fp32 --threads 2 --out out/large' "$GRAFT"
    check "and all of them are written" test "$(stat -c %s out/large/model.safetensors)" -gt 150000000
    rm -rf large out/large
fi
for p in out/merged out/merged.gguf out/q8.gguf out/base.gguf out/peft out/lora.gguf runs/a runs/a/checkpoint-12/state.h5 "$TINY" \
    "$TINY/model.safetensors"; do
    check "inspect ${p#"$SOURCE"/}" "$GRAFT" inspect "$p"
    check "inspect --json ${p#"$SOURCE"/}" bash -c '"$0" inspect --json "$1" | grep "^{"' "$GRAFT" "$p"
done

# ---- an adapter of others, whose tokenizer was saved with it ----
cp -r runs/a/adapter theirs
rm theirs/chat_template.jinja theirs/.graft
cat >theirs/tokenizer_config.json <<J
{"eos_token": "<|endoftext|>", "added_tokens_decoder": {"900": {"content": "<|new|>"}},
 "chat_template": [{"name": "other", "template": "x"},
                   {"name": "default", "template": "{% for m in messages %}<<{{ m.content }}>>{% endfor %}"}]}
J
echo '{"messages": [{"role": "user", "content": "Ho"}]}' >ho.jsonl
"$GRAFT" generate --model "$TINY" --adapter theirs --prompts ho.jsonl --max-tokens 1 >theirs.out 2>theirs.log
check "its template is rendered" grep -q '<<Ho>>' theirs.out
check "another end of text is named" grep -q 'theirs: its eos_token is "<|endoftext|>", that of the base "<|im_end|>"' theirs.log
check "and so is a token that the base has not" grep -q 'theirs: its tokenizer has a token "<|new|>" that the base' theirs.log
check "merged, it has that template" "$GRAFT" merge --model "$TINY" --adapter theirs --dtype fp32 --out merged_theirs
check "as text" grep -q '<<{{ m.content }}>>' merged_theirs/chat_template.jinja
cp -r "$TINY" marked && chmod -R u+w marked # JSON as some editors save it
for f in tokenizer.json tokenizer_config.json; do { printf '\xef\xbb\xbf' && cat "$TINY/$f"; } >marked/$f; done
check "also into a configuration that begins with a byte order mark" \
    "$GRAFT" merge --model marked --adapter theirs --dtype fp32 --out merged_marked
check "which it then has" bash -c 'jq -r .chat_template merged_marked/tokenizer_config.json | grep -F "<<{{ m.content }}>>"'
train on train.max_steps=1 adapter.init_from=theirs >on.log 2>&1
check "trained on with another it is said" grep -q 'init_from theirs was trained with another chat template' on.log

# ---- a template of its own for samples with tools ----
cp -r "$TINY" tools && chmod -R u+w tools
rm tools/chat_template.jinja
jq '.chat_template = [{name: "default", template: "{% if tools %}D{% endif %}{% for m in messages %}<{{ m.content }}>{% endfor %}"},
    {name: "tool_use", template: "{{ tools | tojson }}{% for m in messages %}[{{ m.content }}]{% endfor %}"}]' \
    "$TINY/tokenizer_config.json" >tools/tokenizer_config.json
ask='{"messages": [{"role": "user", "content": "Ho"}]'
printf '%s}\n%s, "tools": [{"name": "f"}]}\n' "$ask" "$ask" >tools.jsonl
check "through a GGUF" "$GRAFT" merge --model tools --dtype fp32 --out tools.gguf
check "and back" "$GRAFT" merge --model tools.gguf --dtype fp32 --out tools.back
for model in tools tools.gguf tools.back; do
    "$GRAFT" generate --model $model --prompts tools.jsonl --max-tokens 1 >tools.out 2>tools.log
    check "$model: a prompt without tools" grep -q '"prompt":"<Ho>"' tools.out
    check "$model: and with" grep -qF '[{\"name\": \"f\"}][Ho]' tools.out
done

# ---- several tokens that end an answer ----
cp -r "$TINY" stops && chmod -R u+w stops
echo '{"eos_token_id": [2, 5, 6, 7]}' >stops/generation_config.json
"$GRAFT" merge --model stops --dtype fp32 --out stops.gguf >stops.log 2>&1
check "a GGUF that cannot hold them all says so" grep -q 'a fourth token that ends an answer: id 7 is left out' stops.log
check "and back" "$GRAFT" merge --model stops.gguf --dtype fp32 --out stops.back
check "those that it can hold are kept" bash -c 'jq -c .eos_token_id stops.back/generation_config.json | grep -x "\[2,5,6\]"'

# ---- the rest of the commands ----
check "validate" "$GRAFT" validate tiny.yaml
check "data preview" "$GRAFT" data preview tiny.yaml --n 2
check "data make" "$GRAFT" data make school-math --n 50 --seed 3 --language both --out m1.jsonl
check "data make to standard output" bash -c '"$0" data make school-math --n 50 --seed 3 --language both >m2.jsonl' "$GRAFT"
check "data make is a function of its seed" same m1.jsonl m2.jsonl
check "data make: as many as asked for" test "$(wc -l <m1.jsonl)" = 50
printf 'Hello  world\n小明 😀\n' >text
check "tokenize" bash -c '"$0" tokenize --model "$1" --plain text >ids' "$GRAFT" "$TINY"
check "tokenize and back" bash -c '"$0" tokenize --model "$1" --plain --decode ids | grep "小明 😀"' "$GRAFT" "$TINY"
check "doctor" "$GRAFT" doctor
check "the man page" bash -c '"$0" help --man | grep "^.SH"' "$GRAFT"
check "the completion" bash -c 'eval "$("$0" help --completion bash)"' "$GRAFT"
for c in train validate plan generate eval merge export inspect tokenize doctor "data preview" "data make"; do
    # shellcheck disable=SC2086 # two words
    check "graft $c --help has an example" bash -c '"$@" --help | grep -A1 "^example" | grep "graft $2"' - "$GRAFT" $c
done
check "the base model's file is unchanged" test "$before" = "$(sha256sum "$TINY/model.safetensors")"
finish
