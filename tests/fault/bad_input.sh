#!/bin/bash
# Bad input: each case ends with its exit code (1 failed, 2 the command line or a recipe is wrong, 3 an input file is
# missing or wrong), one line "graft: error: ..." that names the file and the key, nothing half-written, and no report of a
# sanitizer (tests/run runs this with the sanitizers' build as well).
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
export LC_ALL=C
QWEN=$SOURCE/tests/golden/tiny-qwen2

# bad CODE NAME WORDS COMMAND ...: WORDS (separated by spaces) must all occur in the error. Output goes to ./out, which must
# not be there afterwards, unless it was before (of a run that began: no checkpoint and no adapter).
bad() {
    local code=$1 name=$2 words=$3 was=absent found word
    shift 3
    [ -e out ] && was=there
    "$@" >stdout.log 2>stderr.log </dev/null
    found=$?
    if grep -qE 'AddressSanitizer|LeakSanitizer|runtime error' stderr.log; then
        not_ok "$name" "a sanitizer's report" stderr.log
    elif [ $found != "$code" ]; then
        not_ok "$name" "exit code $found, expected $code" stderr.log
    elif [ "$(grep -c '^graft: error: ' stderr.log)" != 1 ]; then
        not_ok "$name" "expected one line \"graft: error: ...\"" stderr.log
    else
        for word in $words; do
            if ! grep '^graft: error: ' stderr.log | grep -qF -- "$word"; then
                not_ok "$name" "the error does not name \"$word\"" stderr.log
                return
            fi
        done
        if [ $was = absent ] && [ -e out ] && ! { [ -e out/run.log ] && [ ! -e out/adapter ] &&
            [ -z "$(ls -d out/checkpoint-* 2>/dev/null)" ]; }; then
            find out >left.log
            not_ok "$name" "left output behind" left.log
            rm -rf out
        elif find . -name '*.tmp-*' | grep . >left.log; then
            not_ok "$name" "left a temporary file behind" left.log
            find . -name '*.tmp-*' -exec rm -rf {} +
        else
            ok "$name"
        fi
    fi
    [ $was = there ] || rm -rf out
}
# put FILE OFFSET BYTES: overwrite, BYTES as printf writes them
put() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
# model NAME: a copy of the tiny model to damage
model() {
    rm -rf "$1"
    mkdir "$1"
    cp "$TINY"/*.json "$TINY/chat_template.jinja" "$TINY/model.safetensors" "$1"
    rm -f "$1/golden.json"
    chmod -R u+w "$1"
}
data() { printf '%b' "$1" >"$2"; }
recipe() { printf '%b' "$1" >bad.yaml; }
good_recipe="model: {base: $TINY, dtype: fp32}\ndata: {train: $TINY/train.jsonl, cache: none}\n"
good_recipe+="train: {max_steps: 4, batch_size: 4}\nsave: {every: 2}\noutput_dir: out\n"
recipe "$good_recipe"
cp bad.yaml good.yaml
train() { "$GRAFT" train good.yaml "$@"; }
generate() { "$GRAFT" generate --prompt x --max-tokens 2 "$@"; }
evaluate() { "$GRAFT" eval --model "$TINY" --data "$@"; }

# ---- the command line ----
bad 2 "unknown command" "trian train" "$GRAFT" trian
bad 2 "unknown option" "--promt --prompt" "$GRAFT" generate --promt x
bad 2 "option without its value" "--model" "$GRAFT" generate --model
bad 2 "not a number" "--max-tokens many" "$GRAFT" generate --model "$TINY" --prompt x --max-tokens many
bad 2 "number out of range" "--top-p 2" "$GRAFT" generate --model "$TINY" --prompt x --top-p 2
bad 2 "neither prompt nor prompts" "--prompt" "$GRAFT" generate --model "$TINY"
bad 2 "unknown template" "klingon smollm2" generate --model "$TINY" --template klingon
bad 2 "unknown type" "fp12 bf16" generate --model "$TINY" --dtype fp12
bad 2 "a folder cannot be q8_0" "q8_0" "$GRAFT" merge --model "$TINY" --dtype q8_0 --format hf --out out
bad 2 "a folder cannot be q4_k_m" "q4_k_m .gguf" "$GRAFT" merge --model "$TINY" --dtype q4_k_m --out out
bad 2 "a type that no output has" "q4_1 q4_k_m" "$GRAFT" merge --model "$TINY" --dtype q4_1 --out out.gguf
bad 2 "a folder by format, a GGUF by name" "hf out.gguf" "$GRAFT" merge --model "$TINY" --format hf --out out.gguf
bad 2 "an adapter folder by format, a GGUF by name" "peft out.gguf" \
    "$GRAFT" export --adapter "$TINY/adapter" --format peft --out out.gguf
bad 2 "a GGUF by format, a folder by name" "gguf ./" "$GRAFT" merge --model "$TINY" --format gguf --out ./none/
bad 2 "merge without a place" "--out" "$GRAFT" merge --model "$TINY"
bad 2 "init without an architecture" "--config" "$GRAFT" init --out out
bad 2 "init of a quantised model" "q8_0 fp32" "$GRAFT" init --config "$TINY" --dtype q8_0 --out out.gguf
bad 2 "init over its own tokenizer" "tiny" "$GRAFT" init --config "$TINY" --out "$TINY" --overwrite
bad 3 "init of no file" "none.json" "$GRAFT" init --config none.json --out out
bad 2 "both ways out of an existing run" "resume overwrite" train --resume --overwrite
bad 2 "steps of a problem" "--steps" "$GRAFT" data make school-math --steps 0-9 --out out
bad 2 "unknown task" "school-math" "$GRAFT" data make school-maths --out out
bad 2 "prompt longer than the context" "2048" "$GRAFT" generate --model "$TINY" --prompt "$(printf 'x %.0s' $(seq 9000))"

for c in serve fetch study bench "data stats" "data mix"; do
    # shellcheck disable=SC2086 # two words
    bad 2 "graft $c: a later version's" "${c% extend} version" "$GRAFT" $c
done
bad 2 "data without a verb" "preview make" "$GRAFT" data
bad 2 "plan for too many ranks" "--ranks 5000" "$GRAFT" plan good.yaml --ranks 5000
bad 2 "plan for a device that is not there" "device cuda:999" "$GRAFT" plan good.yaml --device cuda:999
bad 2 "plan for a card of another name" "a100-40gb" "$GRAFT" plan good.yaml --device a100-20gb
bad 2 "less memory than a step needs" "train.memory_limit MiB" "$GRAFT" plan good.yaml train.memory_limit=1MiB

# ---- recipes ----
bad 3 "no such recipe" "nowhere.yaml" "$GRAFT" train nowhere.yaml
check_recipe() { # check_recipe CODE NAME WORDS LINE: the good recipe with one more line
    recipe "$good_recipe$4\n"
    bad "$1" "$2" "bad.yaml $3" "$GRAFT" train bad.yaml
}
check_recipe 2 "unknown key" ":6: learning_rat" "learning_rat: 1"
recipe "adapter: {rnak: 8}\n$good_recipe"
bad 2 "unknown key, near another" "bad.yaml:1:11 rnak rank" "$GRAFT" validate bad.yaml
recipe "adapter: {lora_r: 8}\n$good_recipe"
bad 2 "a peer's name" "bad.yaml:1 lora_r rank" "$GRAFT" validate bad.yaml
check_recipe 2 "duplicate key" "output_dir" "output_dir: twice"
check_recipe 2 "wrong kind of value" "rank" "adapter: {rank: many}"
check_recipe 2 "value out of range" "rank 0" "adapter: {rank: 0}"
check_recipe 2 "not one of the choices" "method lorra lora" "adapter: {method: lorra}"
check_recipe 2 "not a number" "alpha" "adapter: {alpha: .nan}"
check_recipe 2 "a list where a section belongs" "eval" "eval: [1, 2]"
check_recipe 2 "bad YAML" ":" "adapter: {rank: 8"
check_recipe 2 "bad UTF-8" "" 'adapter: {init_from: "\0377\0376"}'
bad 2 "unknown target" "target_modules q_prj q_proj" train adapter.target_modules=q_prj
check_recipe 2 "extends what is missing" "nobase.yaml" "extends: nobase.yaml"
recipe "extends: bad.yaml\n"
bad 2 "extends itself" "bad.yaml extends" "$GRAFT" validate bad.yaml
recipe "train: {max_steps: 1}\n"
bad 2 "required keys" "model.base data.train output_dir" "$GRAFT" train bad.yaml
bad 2 "override of an unknown key" "train.learning_rat learning_rate" train train.learning_rat=1
bad 2 "override without a value" "train.seed" train train.seed
bad 2 "max_length beyond the context" "data.max_length 2048 4096" train data.max_length=4096
bad 2 "eval share" "data.eval" train data.eval=1.5

# ---- models ----
bad 3 "no such model" "nowhere" generate --model nowhere
# What is no such file at all: the error says what it is.
pointer='version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'
for f in model.safetensors config.json tokenizer.json tokenizer_config.json; do
    model m && data "$pointer" "m/$f"
    bad 3 "a git-LFS pointer as $f" "m/$f git-LFS pull" generate --model m
done
data "$pointer" m.gguf
bad 3 "a git-LFS pointer as GGUF" "m.gguf git-LFS pull" generate --model m.gguf
bad 3 "inspect of a git-LFS pointer" "m.gguf git-LFS pull" "$GRAFT" inspect m.gguf
model m && rm m/tokenizer.json && data "$pointer" m/tokenizer.model
bad 3 "a git-LFS pointer as tokenizer.model" "m/tokenizer.model git-LFS pull" generate --model m
model m && data '<!DOCTYPE html><html><title>401</title></html>' m/model.safetensors
bad 3 "an HTML page as weights" "m/model.safetensors HTML download" generate --model m
bad 3 "inspect of an HTML page" "m/model.safetensors HTML" "$GRAFT" inspect m
model m && data 'Entry not found' m/model.safetensors
bad 3 "an answer of a server as weights" "m/model.safetensors Entry not found" generate --model m
model m && mv m/model.safetensors m/pytorch_model.bin
bad 3 "pickled weights" "m: pytorch_model.bin save_pretrained" generate --model m
model m && rm m/config.json
bad 3 "no config.json" "m config.json" generate --model m
model m && sed -i '1s/{/{"quantization_config": {"quant_method": "gptq", "bits": 4},/' m/config.json
bad 3 "a base packed by GPTQ" "m/config.json quantization_config gptq" generate --model m
model m && data '{"hidden_size": ' m/config.json
bad 3 "config.json is cut" "m/config.json" generate --model m
model m && sed -i '/"hidden_size"/d' m/config.json
bad 3 "config.json without a size" "m/config.json hidden_size" generate --model m
model m && sed -i 's/"hidden_size": 64/"hidden_size": "64"/' m/config.json
bad 3 "config.json: text for a number" "m/config.json hidden_size" generate --model m
model m && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": -2/' m/config.json
bad 3 "config.json: negative size" "m/config.json num_hidden_layers" generate --model m
model m && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 9000000000000000/' m/config.json
bad 3 "config.json: size beyond reason" "m/config.json num_hidden_layers" generate --model m
model m && sed -i 's/LlamaForCausalLM/MambaForCausalLM/; s/"model_type": "llama"/"model_type": "mamba"/' m/config.json
bad 3 "unknown architecture" "m/config.json mamba" generate --model m
model m && sed -i '1s/{/{"partial_rotary_factor": 0.5,/' m/config.json
bad 3 "a rotation of a part of each head" "m/config.json partial_rotary_factor 0.5" generate --model m
model m && sed -i '1s/{/{"embedding_multiplier": 12.0,/' m/config.json
bad 3 "a multiplier that is not computed" "m/config.json embedding_multiplier 12.0" generate --model m
model m && sed -i 's/LlamaForCausalLM/LlamaForSequenceClassification/' m/config.json
bad 3 "a model with another head" "m/config.json LlamaForSequenceClassification" generate --model m
model m && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 1/' m/config.json
bad 3 "layers that nothing reads" "m/model.safetensors model.layers.1." generate --model m
model m && mv m/model.safetensors m/pytorch_model.bin
bad 3 "a pickle for weights" "pytorch_model.bin safetensors" generate --model m
model m && sed -i 's/"num_hidden_layers": 2/"num_hidden_layers": 3/' m/config.json
bad 3 "missing tensor" "m model.layers.2." generate --model m
model m && sed -i 's/"model.norm.weight"/"model.nrom.weight"/' m/model.safetensors
bad 3 "misnamed tensor" "m model.norm.weight" generate --model m
model m && sed -i 's/"hidden_size": 64/"hidden_size": 128/; s/"head_dim": 16/"head_dim": 32/' m/config.json
bad 3 "shape unlike config.json" "m model.embed_tokens.weight" generate --model m
model m && sed -i '1s/"dtype":"F32","shape":\[640/"dtype":"I32","shape":[640/' m/model.safetensors
bad 3 "wrong dtype" "m model.embed_tokens.weight I32" generate --model m
model m && put m/model.safetensors 0 '\377\377\377\377\377\377\377\177'
bad 3 "safetensors: overflowing header length" "m/model.safetensors" generate --model m
model m && put m/model.safetensors 8 'x'
bad 3 "safetensors: header is no JSON" "m/model.safetensors" generate --model m
model m && sed -i '1s/"data_offsets":\[0,163840\]/"data_offsets":[0,999999]/' m/model.safetensors
bad 3 "safetensors: offsets beyond the file" "m/model.safetensors model.embed_tokens.weight" generate --model m
model m && sed -i '1s/"shape":\[640,64\]/"shape":[640,-1]/' m/model.safetensors
bad 3 "safetensors: negative shape" "m/model.safetensors model.embed_tokens.weight" generate --model m
model m && truncate -s 300000 m/model.safetensors
bad 3 "safetensors: truncated" "m/model.safetensors" generate --model m
model m && : >m/model.safetensors
bad 3 "safetensors: empty" "m/model.safetensors" generate --model m
model m && rm m/model.safetensors
bad 3 "no weights" "m" generate --model m
model m && rm m/tokenizer.json
bad 3 "no tokenizer" "m tokenizer" generate --model m
model m && truncate -s 9000 m/tokenizer.json
bad 3 "tokenizer.json is cut" "m/tokenizer.json" generate --model m
model m && sed -i 's/"normalizer": null/"normalizer": {"type": "Lowercase"}/' m/tokenizer.json
bad 3 "a normalizer that is not known" "m/tokenizer.json Lowercase" generate --model m
model m && sed -i 's/"lstrip": false/"lstrip": true/' m/tokenizer.json
bad 3 "a tokenizer that GGUF cannot hold" "GGUF ids lstrip" "$GRAFT" merge --model m --format gguf --out out
model m && sed -i '0,/"id": 0,/s//"id": 300, "content": "<far>", "special": true}, {"id": 0,/' m/tokenizer.json
bad 3 "an added token with the id of another piece" "m/tokenizer.json <far> 300 640" generate --model m
model m && sed -i '0,/"id": 0,/s//"id": 640, "content": "<far>", "special": true}, {"id": 0,/' m/tokenizer.json
bad 3 "a prompt with a token beyond the embedding" "prompt <far> 640" generate --model m --template none --prompt "x <far>"
data '{"text": "x <far>"}\n' d.jsonl
bad 3 "data with a token beyond the embedding" "d.jsonl <far> 640" \
    "$GRAFT" eval --model m --data d.jsonl --template none --loss-on all
check "a vocabulary larger than the embedding" generate --model m --template none
check "a vocabulary larger than the embedding: merged" "$GRAFT" merge --model m --out spare.gguf
check "a vocabulary larger than the embedding: its GGUF" generate --model spare.gguf --template none
model m && printf '{{ messages | unheard_of }}' >m/chat_template.jinja
bad 3 "a chat template with an unknown filter" "line 1 unheard_of supported" generate --model m
model m && printf '\n{%% include "x" %%}' >m/chat_template.jinja
bad 3 "a chat template with an unknown statement" "line 2 include supported" generate --model m
model m && printf '{{ raise_exception("no pirates") }}' >m/chat_template.jinja
bad 3 "a chat template that refuses" "refuses no pirates" generate --model m

# ---- GGUF ----
if "$GRAFT" merge --model "$TINY" --dtype fp32 --out base.gguf >merge.log 2>&1; then
    gguf() { # gguf NAME WORDS COMMAND ...: damage g.gguf, then read it
        local name=$1 words=$2
        shift 2
        cp base.gguf g.gguf
        "$@"
        bad 3 "GGUF: $name" "g.gguf $words" generate --model g.gguf
    }
    gguf "truncated in its header" "" truncate -s 200 g.gguf
    gguf "truncated in its tensors" "" truncate -s -1000 g.gguf
    gguf "empty" "" truncate -s 0 g.gguf
    gguf "not a GGUF" "" put g.gguf 0 'GGML'
    gguf "a version of the future" "99" put g.gguf 4 '\143'
    gguf "overflowing number of tensors" "" put g.gguf 8 '\377\377\377\377\377\377\377\377'
    gguf "overflowing number of keys" "" put g.gguf 16 '\377\377\377\377\377\377\377\177'
    gguf "overflowing length of a key" "" put g.gguf 24 '\377\377\377\377\377\377\377\177'
    gguf "unknown type of a value" "" put g.gguf "$((32 + $(od -An -tu8 -j24 -N8 base.gguf)))" '\144'
    gguf "unknown architecture" "general.architecture" \
        sed -i 's/general.architecture\(............\)llama/general.architecture\1mamba/' g.gguf
    gguf "missing key" "block_count" sed -i 's/llama.block_count/llama.block_coumt/' g.gguf
    gguf "missing tensor" "token_embd" sed -i 's/token_embd.weight/token_ebmd.weight/' g.gguf
else
    not_ok "GGUF: a file to damage" "merge failed" merge.log
fi

# ---- data ----
bad 3 "no such data" "nowhere.jsonl" evaluate nowhere.jsonl
: >d.jsonl
bad 3 "empty data" "d.jsonl" evaluate d.jsonl
data "$pointer" d.jsonl
bad 3 "a git-LFS pointer as data" "d.jsonl git-LFS" evaluate d.jsonl
data 'PAR1\025\004' d.parquet
bad 3 "Parquet as data" "d.parquet pandas.read_parquet JSONL" evaluate d.parquet
data 'PK\003\004\024' d.zip
bad 3 "zip as data" "d.zip unpack" evaluate d.zip
data '\n \n' d.jsonl
bad 3 "blank data" "d.jsonl" evaluate d.jsonl
data '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion":\n' d.jsonl
bad 3 "a line that is no JSON" "d.jsonl:2" evaluate d.jsonl
data '[{"prompt": "a", "completion": "b"},' d.json
bad 3 "an array without its end" "d.json" evaluate d.json
data '{"this": "a", "that": "b"}\n' d.jsonl
bad 3 "an unknown form" "d.jsonl this prompt" evaluate d.jsonl
data '{"query": "a", "response": "b"}\n' d.jsonl
bad 3 "another set's names of fields" "d.jsonl columns: {prompt: query completion: response}" evaluate d.jsonl
data '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 7}\n' d.jsonl
bad 3 "a number for a text" "d.jsonl:2 completion" evaluate d.jsonl
data '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n' d.jsonl
bad 3 "a sample without its answer" "d.jsonl:2 completion" evaluate d.jsonl
data '{"messages": [{"role": "wizard", "content": "b"}, {"role": "assistant", "content": "c"}]}\n' d.jsonl
bad 3 "an unknown role" "d.jsonl:1 wizard" evaluate d.jsonl
for field in '"label": false' '"kto_tag": true' '"rejected": "c"' '"images": ["x.png"]' '"weight": 0.5' \
    '"tools": 7' '"train": false'; do
    data "{\"prompt\": \"a\", \"completion\": \"b\"}\\n{\"prompt\": \"a\", \"completion\": \"b\", $field}\\n" d.jsonl
    bad 3 "a sample with $field" "d.jsonl:2 ${field%%:*}" evaluate d.jsonl
done
for field in '"weight": 0.5' '"tool_calls": [7]' '"function_call": "x"' '"content": [{"type": "image"}]'; do
    data "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}, {\"role\": \"assistant\", \"content\": \"b\", $field}]}\\n" \
        d.jsonl
    bad 3 "a message with $field" "d.jsonl:1 message 2: ${field%%:*}" evaluate d.jsonl
done
data '{"messages": [{"role": "user", "content": "b"}]}\n' d.jsonl
bad 3 "nothing to learn" "d.jsonl" evaluate d.jsonl
data '{"prompt": "a", "completion": "b"}\n' d.jsonl
recipe "$good_recipe"
bad 2 "an unknown form by name" "alpacca alpaca" train 'data.train=[{path: d.jsonl, format: alpacca}]'
bad 3 "a column that is not there" "d.jsonl question" train 'data.train=[{path: d.jsonl, columns: {prompt: question}}]'
printf '{"prompt": "x", "completion": "%s"}\n' "$(printf 'y %.0s' $(seq 3000))" >d.jsonl
bad 3 "a sample longer than max_length" "d.jsonl:1 64" train data.train=d.jsonl data.max_length=64 data.truncation=error
data '{"text": 3}\n' p.jsonl
bad 3 "prompts of no known form" "p.jsonl:1 prompt" "$GRAFT" generate --model "$TINY" --prompts p.jsonl --out out
data '' p.jsonl
bad 3 "no prompts" "p.jsonl" "$GRAFT" generate --model "$TINY" --prompts p.jsonl --out out
data '[1, 99999]\n' ids
bad 3 "ids beyond the vocabulary" "ids:1" "$GRAFT" tokenize --model "$TINY" --decode ids
printf '{"prompt": "a\377b", "completion": "c\376"}\n' >d.jsonl
bad 3 "bytes that are no UTF-8" "d.jsonl:1 0xFF data.encoding gb18030 replace" evaluate d.jsonl
check "bytes that are no UTF-8 read as U+FFFD when asked for" evaluate d.jsonl --encoding replace
bad 2 "an unknown encoding" "data.encoding klingon gb18030" evaluate d.jsonl --encoding klingon
bad 3 "bytes that are not of the encoding" "d.jsonl:1 gb18030" evaluate d.jsonl --encoding gb18030
data '{"prompt": "a", "completion": "b"}\n' d.jsonl
check "a single sample, and a share of it for evaluation" train data.train=d.jsonl data.eval=0.5 train.max_steps=2 output_dir=one
check "a weight that leaves epochs without samples" \
    train 'data.train=[{path: d.jsonl, weight: 0.3}]' train.max_steps=2 output_dir=few
bad 2 "a weight that leaves no sample at all" "num_train_epochs weights" \
    train 'data.train=[{path: d.jsonl, weight: 0.3}]' train.max_steps=null \
    train.num_train_epochs=1
printf 'prompt,completion\na,b\n' | gzip >d.csv.gz
check "a packed CSV" evaluate d.csv.gz
head -c 30 d.csv.gz >e.csv.gz
bad 3 "a packed file that is cut" "e.csv.gz cut off" evaluate e.csv.gz
printf 'prompt,completion\na,b\n"c,d\n' >d.csv
bad 3 "a quote that is never closed" "d.csv:3 quote" evaluate d.csv
printf 'prompt,completion\na,b\nc,d,e\n' >d.csv
bad 3 "a cell too many" "d.csv:3 3 cells 2" evaluate d.csv

# ---- adapters ----
adapter() {
    rm -rf a
    cp -r "$TINY/adapter" a
    chmod -R u+w a
}
with_a() { generate --model "$TINY" --adapter a; }
bad 3 "no such adapter" "nowhere" generate --model "$TINY" --adapter nowhere
bad 2 "scale of an adapter" "lots" generate --model "$TINY" --adapter "$TINY/adapter:lots"
bad 3 "adapter of another model" "adapter_model.safetensors lora" generate --model "$QWEN" --adapter "$TINY/adapter"
adapter && truncate -s 20 a/adapter_config.json
bad 3 "adapter_config.json is cut" "a/adapter_config.json" with_a
adapter && sed -i 's/"use_dora": false/"use_dora": true/' a/adapter_config.json
bad 3 "DoRA" "a/adapter_config.json use_dora" with_a
adapter && sed -i 's/"peft_type": "LORA"/"peft_type": "IA3"/' a/adapter_config.json
bad 3 "another kind of adapter" "a/adapter_config.json IA3" with_a
adapter && sed -i 's/"r": 4/"r": 8/' a/adapter_config.json
bad 3 "rank unlike the matrices" "a lora_A" with_a
adapter && rm a/adapter_model.safetensors
bad 3 "adapter without its matrices" "a adapter_model.safetensors" with_a
adapter && truncate -s 30000 a/adapter_model.safetensors
bad 3 "adapter: truncated" "a/adapter_model.safetensors" with_a
adapter && sed -i '1s/"format":"pt"/"format":""/; 1s/"shape":\[4,\([0-9]*\)\]/"shape":[4,\1,1]/' a/adapter_model.safetensors
bad 3 "adapter: a matrix of three dimensions" "a/adapter_model.safetensors shape 1," with_a
adapter && put a/adapter_model.safetensors 39000 '\377\377\377\377\377\377\377\377'
bad 3 "NaN in an adapter" "a/adapter_model.safetensors lora" with_a
adapter && sed -i '1s/layers.1.mlp.up_proj.lora_B/layers.1.mlp.up_prjo.lora_B/' a/adapter_model.safetensors
bad 3 "adapter: misnamed tensor" "a/adapter_model.safetensors up_pr" with_a
adapter && sed -i '1s/"dtype":"F32"/"dtype":"I32"/' a/adapter_model.safetensors
bad 3 "adapter: a matrix in I32" "a/adapter_model.safetensors lora_ I32 F64" with_a
adapter && sed -i '/model.layers.1.mlp.up_proj/d' a/adapter_config.json
bad 3 "adapter: a matrix that is no target" "a/adapter_config.json model.layers.1.mlp.up_proj" with_a
adapter && sed -i 's/"model.layers.1.mlp.up_proj"/"lm_head", &/' a/adapter_config.json
bad 3 "adapter: a target without a matrix" "a/adapter_config.json lm_head saved" with_a
adapter && mv a/adapter_model.safetensors a/adapter_model.bin
bad 3 "adapter as a pickle" "a/adapter_model.bin safe_serialization" generate --model "$TINY" --adapter a/adapter_model.bin
adapter && mv a/adapter_model.safetensors a/adapters.safetensors && echo '{"fine_tune_type": "dora"}' >a/adapter_config.json
bad 3 "an mlx-lm adapter of DoRA" "a/adapter_config.json dora" with_a
"$GRAFT" export --model "$TINY" --adapter "$TINY/adapter" --out lora.gguf >export.log 2>&1 ||
    not_ok "GGUF LoRA: a file to damage" "export failed" export.log
bad 3 "GGUF LoRA of another model" "lora.gguf general.architecture" generate --model "$QWEN" --adapter lora.gguf
cp base.gguf model.gguf
bad 3 "a model as adapter" "model.gguf no adapter" generate --model "$TINY" --adapter model.gguf
truncate -s 3000 lora.gguf
bad 3 "GGUF LoRA: truncated" "lora.gguf" generate --model "$TINY" --adapter lora.gguf
data "$pointer" lora.gguf
bad 3 "a git-LFS pointer as adapter" "lora.gguf git-LFS" generate --model "$TINY" --adapter lora.gguf
head -c 5000 /dev/zero >junk
bad 3 "inspect what is nothing" "junk" "$GRAFT" inspect junk

# ---- training, runs and checkpoints ----
model m && put m/model.safetensors 5000 '\000\000\300\177'
bad 1 "NaN in the weights: the loss is not finite" "step 1 loss" train model.base=m
train >first.log 2>&1 || not_ok "a run to continue" "see" first.log
cp -r out kept
bad 2 "an existing run" "out --resume --overwrite" train
bad 2 "resume with another batch size" "batch_size" train --resume train.batch_size=5 train.max_steps=4
head -n 9 "$TINY/train.jsonl" >other.jsonl
bad 2 "resume with another learning rate" "train.learning_rate 0.1" train --resume train.learning_rate=0.1
bad 2 "resume with another alpha" "adapter.alpha 99" train --resume adapter.alpha=99
bad 2 "resume with another rank" "adapter.rank 4" train --resume adapter.rank=4
bad 2 "resume with another dtype" "model.dtype bf16" train --resume model.dtype=bf16
bad 2 "resume in another order" "data.shuffle" train --resume data.shuffle=false
bad 2 "resume with other data" "out data" train --resume data.train=other.jsonl
for f in out/checkpoint-*/state.h5; do put "$f" 3000 'damaged'; done
bad 3 "damaged checkpoints" "out checkpoint state.h5" train --resume
for f in out/checkpoint-*/state.h5; do truncate -s 1000 "$f"; done
bad 3 "truncated checkpoints" "out checkpoint state.h5" train --resume
rm -rf out && cp -r kept out
put out/checkpoint-4/state.h5 3000 'damaged'
check "one damaged checkpoint: the run goes on" train --resume
check "from the one before it" grep -qF "resuming from out/checkpoint-2" out/run.log
rm -rf out
check "resume where no run is: it starts" train --resume
check "and says so" grep -qF "holds no checkpoint: starting from the beginning" out/run.log
rm -rf out

# ---- places to write to ----
: >file
bad 1 "output below a file" "file/x" train output_dir=file/x
bad 1 "merge below a file" "file" "$GRAFT" merge --model "$TINY" --out file/x
mkdir there && : >there/something
bad 2 "merge over something" "there" "$GRAFT" merge --model "$TINY" --out there
check "and it is still there" test -e there/something
bad 2 "nor with --overwrite, which replaces models alone" "there" "$GRAFT" merge --model "$TINY" --out there --overwrite
check "and it is still there, again" test -e there/something
rm -rf there
mkdir -p run/adapter && cp good.yaml run/recipe.yaml
bad 2 "export over a run" "run" "$GRAFT" export --model "$TINY" --adapter "$TINY/adapter" --out run --overwrite
check "export over an empty folder" bash -c 'mkdir none && "$0" export --model "$1" --adapter "$1/adapter" --out none --overwrite' \
    "$GRAFT" "$TINY"
check "export over an adapter" "$GRAFT" export --model "$TINY" --adapter "$TINY/adapter" --out none --overwrite
rm -rf run none
bad 2 "a model to standard output" "--out - ./-" "$GRAFT" merge --model "$TINY" --out -
bad 2 "an adapter to standard output" "--out - export" "$GRAFT" export --model "$TINY" --adapter "$TINY/adapter" --out -
bad 2 "a folder named as a file of weights" "out.safetensors .safetensors FILE.gguf" \
    "$GRAFT" merge --model "$TINY" --out out.safetensors
bad 2 "an adapter's folder named so" "out.bin .bin" "$GRAFT" export --model "$TINY" --adapter "$TINY/adapter" --out out.bin
bad 2 "a key with nothing after =" "data.system= null empty" train data.system=
bad 2 "a variable of a shell that is not set" "train.max_steps= null" train train.max_steps=
printf '{%% for m in messages %%}{{ m.content }}' >open.jinja
bad 3 "a template with an open loop" "open.jinja endfor" train data.template=open.jinja
to_full() { "$GRAFT" help recipe >/dev/full; }
bad 1 "standard output is full" "standard output" to_full
limited() { # no file beyond 50 KB, as a full disk would have it
    (
        trap '' XFSZ
        ulimit -f 50
        "$GRAFT" "$@"
    )
}
bad 1 "no room for the merged model" "out" limited merge --model "$TINY" --out out
bad 1 "no room for a GGUF" "out" limited merge --model "$TINY" --format gguf --out out
bad 1 "no room for a checkpoint" "out" limited train good.yaml adapter.rank=64 train.max_steps=2
rm -rf out
mkdir disk
if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=64k graft-test disk 2>/dev/null; then
    bad 1 "full disk: a merged model" "disk/model" "$GRAFT" merge --model "$TINY" --out disk/model
    bad 1 "full disk: a run" "disk/run" train output_dir=disk/run adapter.rank=64
    umount disk
else
    skip "full disk" "only root may mount one"
fi
finish
