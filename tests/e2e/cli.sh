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
        if ! cat out.log err.log | grep -qF -- "$word"; then
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
device: cuda
Y
says "validate tells all errors at once" 2 "bad.yaml:1:36: model.dtype|bad.yaml:2:17: adapter.rank|bad.yaml:2:20: unknown key \"lora_alpha\"|bad.yaml:3:$((${#TINY} + 55))\
: data.loss_on|bad.yaml:4:9: device: cuda is not in this version yet|output_dir is missing|6 wrong, 2 not there" "$GRAFT" validate bad.yaml
check "paths that lead nowhere come after what is wrong" bash -c 'tail -n 3 err.log | head -n 1 | grep -q "bad.yaml:1:15: model.base: nothing is there"'
check "one line is the error" test "$(grep -c '^graft: error: ' err.log)" = 1
says "validate --no-files" 2 "6 wrong" "$GRAFT" validate bad.yaml --no-files
check "looks for no file" bash -c '! grep -q "nothing is there" err.log'
says "validate --json" 2 '{"valid": false|"line": 2, "column": 17|"missing": [{"message": "bad.yaml:1:15' "$GRAFT" validate bad.yaml --json
check "is one line of JSON" test "$(wc -l <out.log)" = 1
printf 'model: {base: nowhere.gguf}\ndata: {train: nothing.jsonl}\noutput_dir: x\n' >away.yaml
says "a recipe whose files are elsewhere" 3 "2 not there|--no-files" "$GRAFT" validate away.yaml
says "is a valid recipe" 0 "away.yaml: valid" "$GRAFT" validate away.yaml --no-files
says "validate takes overrides and options" 2 "train.seed=x: train.seed|device=cuda" "$GRAFT" validate away.yaml train.seed=x --device cuda --no-files
for r in "$SOURCE"/recipes/*.yaml "$SOURCE"/recipes/belle/llama-*.yaml; do
    says "validate ${r#"$SOURCE"/}" 0 valid "$GRAFT" validate "$r" --no-files
done
finish
