#!/bin/bash
# The command line as a new user meets it: validate, help, version, batch generation, chat.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
export LC_ALL=C XDG_STATE_HOME=$WORK/state
# says NAME CODE WORDS COMMAND ...: its exit code, and words (separated by |) that stdout and stderr must hold together
says() {
    local name=$1 code=$2 words=$3 found word
    shift 3
    "$@" >out.log 2>err.log </dev/null
    found=$?
    if [ $found != "$code" ]; then
        not_ok "$name" "exit code $found, expected $code" out.log err.log
        return
    fi
    while IFS= read -r word; do
        if ! grep -qF -- "$word" out.log err.log; then
            not_ok "$name" "no \"$word\"" out.log err.log
            return
        fi
    done < <(tr '|' '\n' <<<"$words")
    ok "$name"
}

# ---- validate ----
cat >bad.yaml <<Y
model: {base: nowhere.gguf, dtype: fp12}
adapter: {rank: 0, lora_alpha: 3}
data: {train: [nothing.jsonl, $TINY/train.jsonl], loss_on: everything}
device: cudo
Y
words="bad.yaml:1:36: model.dtype|bad.yaml:2:17: adapter.rank|bad.yaml:2:20: unknown key \"lora_alpha\""
words+="|bad.yaml:3:$((${#TINY} + 55)): data.loss_on|bad.yaml:4:9: device: expected auto, cpu, cuda or cuda:N, found \"cudo\""
says "validate tells all errors at once" 2 "$words|output_dir is missing|6 wrong, 2 not there" "$GRAFT" validate bad.yaml
check "paths that lead nowhere come after what is wrong" \
    bash -c 'tail -n 3 err.log | head -n 1 | grep -q "bad.yaml:1:15: model.base: nothing is there"'
check "one line is the error" test "$(grep -c '^graft: error: ' err.log)" = 1
says "validate --no-files" 2 "6 wrong" "$GRAFT" validate bad.yaml --no-files
check "looks for no file" bash -c '! grep -q "nothing is there" err.log'
says "validate --json" 2 '{"valid": false|"line": 2, "column": 17|"missing": [{"message": "bad.yaml:1:15' \
    "$GRAFT" validate bad.yaml --json
check "is one line of JSON" test "$(wc -l <out.log)" = 1
printf 'model: {base: nowhere.gguf}\ndata: {train: nothing.jsonl}\noutput_dir: x\n' >away.yaml
says "a recipe whose files are elsewhere" 3 "2 not there|--no-files" "$GRAFT" validate away.yaml
says "is a valid recipe" 0 "away.yaml: valid" "$GRAFT" validate away.yaml --no-files
says "validate takes overrides and options" 2 "train.seed=x: train.seed|device" \
    "$GRAFT" validate away.yaml train.seed=x --device cudo --no-files
for r in "$SOURCE"/recipes/*.yaml "$SOURCE"/recipes/{belle/llama,ct-llm/ct-llm,vocabulary/}*.yaml; do
    says "validate ${r#"$SOURCE"/}" 0 valid "$GRAFT" validate "$r" --no-files
done

# ---- what there is ----
says "graft --version" 0 "graft $(sed -nE 's/^project\(graft VERSION ([0-9.]+).*/\1/p' "$SOURCE/CMakeLists.txt") (commit |, cpu-" \
    "$GRAFT" --version
if [ -e "$SOURCE/.git" ] && git -C "$SOURCE" rev-parse HEAD >/dev/null 2>&1; then
    commit=$("$GRAFT" version | sed -n 's/.*(commit \([0-9a-f]*\),.*/\1/p')
    check "the commit of the checkout" git -C "$SOURCE" cat-file -e "${commit:-none}^{commit}"
else
    skip "the commit of the checkout" "not built from one"
fi
says "version --json" 0 '"commit": "|"device": "cpu-' "$GRAFT" version --json
says "graft alone lists commands and topics" 0 "  generate |  recipe |  data |exit codes" "$GRAFT"
says "an unknown command" 2 'unknown command "trian" (did you mean train?); there are: train, validate, plan' "$GRAFT" trian
says "graft data" 2 "graft data has preview, make" "$GRAFT" data
says "an unknown sub-command" 2 'unknown command "data maek" (did you mean data make?); graft data has: preview, make' \
    "$GRAFT" data maek
says "graft data --help" 0 "graft data make|prompt_completion" "$GRAFT" data --help
says "graft help data" 0 "graft data preview|alpaca, " "$GRAFT" help data
says "graft help data make" 0 "usage: graft data make" "$GRAFT" help data make
says "graft help models" 0 "MistralForCausalLM, in a GGUF llama|Gemma3ForCausalLM, in a GGUF gemma3|q4_0 q4_1 q5_0|q4_k_m|smollm2" \
    "$GRAFT" help models
says "an unknown topic" 2 'no help on "recipes" (did you mean recipe?); there is: recipe, models, data' "$GRAFT" help recipes
says "an option where a value belongs" 2 "--prompt needs a value: --prompt TEXT (a value of that form: --prompt=...)" \
    "$GRAFT" generate --prompt --model x
says "a value that looks like an option" 0 "" "$GRAFT" generate --model "$TINY" --prompt=--model --max-tokens 1
says "the last option without its value" 2 "--model needs a value: --model PATH" "$GRAFT" generate --model
for option in '--dtype fp12|error: --dtype fp12: model.dtype' \
    '--device cuda:999|error: device cuda:999: ' '--device gpu|auto, cpu, cuda or cuda:N' \
    '--threads 0|error: --threads 0' '--template klingon|error: --template klingon: data.template: unknown template' \
    '--compute fast|exact' '--quantize q9|nf4'; do
    # shellcheck disable=SC2086 # two words
    says "${option%%|*}" 2 "${option#*|}" "$GRAFT" generate --model "$TINY" --prompt x ${option%%|*}
done
for option in "--model nowhere" "--model $TINY --adapter nowhere" "--model $TINY --template nowhere.yaml"; do
    # shellcheck disable=SC2086 # words
    says "${option/"$TINY"/tiny}" 3 nowhere "$GRAFT" generate --prompt x $option
done

says "a name of the hub" 3 "Nobody/no-model: no such model|hf download" "$GRAFT" generate --model Nobody/no-model --prompt x
says "in a recipe" 3 'model.base: nothing is there: "Nobody/no-model"; a model of the Hugging Face hub' \
    "$GRAFT" validate "$SOURCE/recipes/quickstart.yaml" \
    model.base=Nobody/no-model data.train="$TINY/train.jsonl"

# ---- generate ----
generate() { "$GRAFT" generate --model "$TINY" --max-tokens 4 "$@"; }
cat >prompts.jsonl <<'P'
{"id": 7, "prompt": "What is 3 + 4?", "answer": "7", "tags": ["a", {"b": null}]}
{"messages": [{"role": "user", "content": "Say hello."}], "id": "x-1", "completion": "Hello!", "reference": "old"}
{"prompt": "Name a colour.", "system": "Be brief.", "tokens": 99}
P
check "generate from standard input" bash -c '"$0" generate --model "$1" --max-tokens 4 --prompts - <prompts.jsonl >from-stdin' \
    "$GRAFT" "$TINY"
check "and from the file" generate --prompts prompts.jsonl --out from-file
check "are the same" cmp from-stdin from-file
is='^\{"id":7,"prompt":"What is 3 \+ 4\?","reference":"7","tags":\["a",\{"b":null\}\],"completion":".*","tokens":4\}$'
check "a line keeps its fields, in order, its answer as reference" grep -qE "$is" <(sed -n 1p from-file)
is='^\{"messages":.*"id":"x-1","reference":"Hello!","prompt":".*Say hello.*","completion":".*","tokens":4\}$'
check "a line of messages keeps them" grep -qE "$is" <(sed -n 2p from-file)
check "what is replaced is said" bash -c \
    '"$0" generate --model "$1" --max-tokens 4 --prompts prompts.jsonl 2>&1 >/dev/null | grep -q "warning: 2 lines had a field"' \
    "$GRAFT" "$TINY"
cat >as-messages.jsonl <<'P'
{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]}
P
check "a system text as a message" generate --prompts as-messages.jsonl --out as-messages
check "the system text of a line is in its prompt" \
    cmp <(sed -n 3p from-file | grep -o '"completion.*') <(grep -o '"completion.*' as-messages)
printf '\357\273\277{"prompt": "x"}\r\n\r\n{"prompt": "y"}' >windows.jsonl
check "a byte order mark, CRLF, no newline at the end" \
    bash -c '[ "$("$0" generate --model "$1" --max-tokens 2 --prompts windows.jsonl | wc -l)" = 2 ]' "$GRAFT" "$TINY"
for line in '[1]|standard input:1: expected an object' '{"prompt": 3}|standard input:1: expected {' '{"prompt": "a\u0000b"}|NUL' \
    '{"prompt": "a", "tools": [{"name": "f"}]}|does not write the tools' \
    '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}|leave one out' \
    '{"prompt": "a", "system": 3}|system: expected a text' '{"messages": [{"role": "user"}]}|messages[0]' \
    '{"prompt": "a"|standard input:1: not JSON'; do
    echo "${line%%|*}" | "$GRAFT" generate --model "$TINY" --prompts - >out.log 2>err.log
    code=$?
    if [ $code = 3 ] && grep -qF -- "${line#*|}" err.log; then
        ok "prompt ${line%%|*}"
    else
        not_ok "prompt ${line%%|*}" "exit code $code" err.log
    fi
done
says "an empty prompt under a template" 0 "" generate --prompt ''
says "an empty prompt without one" 2 "prompt 1 is empty" generate --prompt '' --template none
says "no tokens at all" 2 "--max-tokens: expected a whole number from 1" "$GRAFT" generate --model "$TINY" --prompt x --max-tokens 0
says "as many tokens as an option can name" 0 "" "$GRAFT" generate --model "$TINY" --prompt x --max-tokens 9223372036854775807
says "an empty stop text" 2 "--stop" generate --prompt x --stop ''

# ---- chat ----
chat() { "$GRAFT" chat --model "$TINY" --max-tokens 6 "$@"; }
printf 'hello\n/foo\n\n//etc\n/save talk.jsonl\n/system Be brief.\n/clear\nhi\n/save talk2.jsonl\n/quit\nnever\n' |
    chat >chat.out 2>chat.log
check "chat reads a pipe" test "$(wc -l <talk.jsonl)" = 1
check "an unknown command is not sent" grep -q 'no command "/foo"; known are /help /clear' chat.log
answer='\{"role":"assistant",[^}]*\}'
is="^\{\"messages\":\[\{\"role\":\"user\",\"content\":\"hello\"\},$answer,\{\"role\":\"user\",\"content\":\"/etc\"\},$answer\]\}\$"
check "// sends a slash" grep -qE "$is" talk.jsonl
check "/system and /clear" \
    grep -q '^{"messages":\[{"role":"system","content":"Be brief."},{"role":"user","content":"hi"},{"role":"assistant"' talk2.jsonl
check "what chat saves is data" "$GRAFT" eval --model "$TINY" --data talk.jsonl
check "stdout has the answers alone" bash -c '! grep -qE "known|forgotten|messages" chat.out'
check "a pipe leaves no history" test ! -e state
printf '/save talk.jsonl\nx\n/save talk.jsonl\n' | chat >/dev/null 2>chat.log
check "/save replaces nothing" grep -q 'talk.jsonl exists already' chat.log
check "/save before anything was said" grep -q 'nothing was said' chat.log
says "a line that cannot be answered ends a pipe" 2 "context" \
    bash -c 'printf "x %.0s" $(seq 9000) | "$0" chat --model "$1"' "$GRAFT" "$TINY"

# play NAME CODE: stdin is the script of tests/e2e/pty.c
play() {
    local name=$1 code=$2 found
    cat >script
    "$BUILD/tests/pty" script "$GRAFT" chat --model "$TINY" --max-tokens 1900 --ignore-eos >pty.log 2>&1
    found=$?
    if [ $found = "$code" ]; then ok "$name"; else not_ok "$name" "exit code $found, expected $code" pty.log; fi
}
play "Ctrl-C stops the answer, not the program" 0 <<'S'
wait > 
send hello\r
wait hello
wait H
send \3
wait (stopped)
wait > 
send /save part.jsonl\r
wait 2 messages
wait > 
pause
send \4
end
S
check "what was said until then is kept" grep -q '"content":"hello"},{"role":"assistant","content":"..*"' part.jsonl
play "Ctrl-C clears a line, twice it leaves" 0 <<'S'
wait > 
pause
send not sent
wait not sent
send \3
wait > 
pause
send \3
wait > 
pause
send \3
end
S
check "the cleared line was not sent" bash -c '! grep -q stopped pty.log'
play "lines are edited and remembered, in any script" 0 <<'S'
wait > 
pause
send /sistem 小明x\e[D\e[D\e[D\e[D\e[D\e[D\e[D\b\e[D\e[Dy\r
wait no command
wait > 
pause
send \e[A
wait 小明x
send \r
wait no command
wait > 
send /exit\r
end
S
check "history is kept between programs" grep -q '小明x' state/graft/chat_history
check "for its owner alone" test "$(stat -c %a state/graft/chat_history state/graft | tr '\n' ' ')" = "600 700 "
play "the history of before" 0 <<'S'
wait > 
pause
send \e[A\e[A
wait 小明x
send \3
wait > 
pause
send \4
end
S
finish
