#!/bin/bash
# chinese.sh MODEL ALPACA_ZH.json WORK [STEPS [SECONDS]] - Chinese for a model that hardly knows it, from beginning to end.
#
# Learns 6,000 pieces on top of MODEL's tokenizer, extends the model by them, trains their rows alone for STEPS steps (415), then
# LoRA on alpaca's instructions for SECONDS (300) on the extended model and on MODEL, and prints a table of both. Everything lies
# in WORK. PASSES: how often rows are trained (1), each time from those of the pass before; GRAFT names the program (graft),
# ENGLISH samples on which to see what English has lost. Needs what corpus.sh needs.
set -euo pipefail
shopt -s inherit_errexit
[ $# -ge 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd) graft=${GRAFT:-graft}
english=${ENGLISH:+$(realpath "$ENGLISH")}
passes=${PASSES:-1}
[[ $passes =~ ^[1-9][0-9]*$ ]] || { echo "PASSES is $passes: how often rows are trained is 1 or more"; exit 2; }
model=$(realpath "$1") alpaca=$(realpath "$2") work=$3 steps=${4:-415} seconds=${5:-300}
mkdir -p "$work/text"
cd "$work"
export LC_ALL=C.UTF-8

say() { printf '\n== %s\n' "$*"; }

say 'text'
[ -s text/train.jsonl ] || "$here/corpus.sh" text
# Every 20th sample is held out; some of them, mostly Chinese and of moderate length, are what is measured on.
jq -c '[to_entries[] | select(.key % 20 != 0 and .value.output != "") | .value]' "$alpaca" >alpaca-train.json
jq -c '.[] | {text: ([.instruction, .input, .output] | map(select(. != "")) | join("\n"))}' alpaca-train.json >alpaca.jsonl
han='([match("\\p{Han}"; "g")] | length) * 2 > length'
jq -c "to_entries[] | select(.key % 20 == 0) | .value | select(.output | length >= 20 and length <= 250 and ($han))" "$alpaca" |
    awk 'NR <= 150' >alpaca-held.jsonl
jq -r '.text' text/held-out.jsonl | jq -cR "select(length >= 40 and length <= 300 and ($han)) | {prompt: \"\n\", completion: .}" |
    awk 'NR % 5 == 0 && n++ < 100' >lines.jsonl
jq -c '{prompt: "\n", completion: .output}' alpaca-held.jsonl | awk 'NR <= 100' >>lines.jsonl
jq -c '{text: .completion}' lines.jsonl >held-out.jsonl
jq -c '{prompt: .instruction}' alpaca-held.jsonl | awk 'NR <= 40' >prompts.jsonl

say 'vocabulary'
# Instructions count twice: they are a third of the text.
"$graft" vocab train --model "$model" --text alpaca.jsonl alpaca.jsonl text/train.jsonl --only cjk --size 6000 \
    --out zh.json --overwrite
"$graft" vocab extend --model "$model" --vocab zh.json --out extended --text alpaca-held.jsonl --overwrite
"$graft" merge --model "$model" --out plain --overwrite # in the type of the extended one

# per_character DATA MODEL [ADAPTER]: bits for a character of the answers
per_character() {
    local answers
    "$graft" eval --model "$2" ${3:+--adapter "$3"} --data "$1" ${TEMPLATE:+--template "$TEMPLATE"} \
        --out scores.jsonl --overwrite >/dev/null
    answers=$(jq -s '[.[] | (.completion // .output) | length] | add' "$1")
    jq -s --argjson n "$answers" '([.[].nll] | add) / 0.6931471805599453 / $n * 1000 | round / 1000' scores.jsonl
}
# per_thousand MODEL [ADAPTER]: seconds to generate 1,000 characters, with what is needed to start taken off
per_thousand() {
    local begun started ended
    begun=$(date +%s.%N)
    head -n 1 prompts.jsonl >first.jsonl
    "$graft" generate --model "$1" ${2:+--adapter "$2"} --prompts first.jsonl --max-tokens 1 >/dev/null
    started=$(date +%s.%N)
    "$graft" generate --model "$1" ${2:+--adapter "$2"} --prompts prompts.jsonl --max-tokens 128 >answers.jsonl
    ended=$(date +%s.%N)
    jq -s --argjson t "$(awk "BEGIN {print ($ended - $started) - ($started - $begun)}")" \
        '1000 * $t / ([.[].completion | length] | add) * 100 | round / 100' answers.jsonl
}

say 'rows of the new tokens'
before=$(TEMPLATE=none per_character lines.jsonl plain)
from=()
for pass in $(seq "$passes"); do
    "$graft" train "$here/pretrain.yaml" model.base=extended \
        'data.train=[{path: text/train.jsonl, share: 1}, {path: alpaca.jsonl, share: 1}]' data.eval=held-out.jsonl \
        output_dir="rows-$pass" train.max_steps="$steps" "${from[@]}" --overwrite
    from=(adapter.init_from="rows-$pass/adapter" train.learning_rate=6.0e-3 train.seed=$((7 * pass)))
done
"$graft" merge --model extended --adapter "rows-$pass" --out adapted --overwrite
after=$(TEMPLATE=none per_character lines.jsonl adapted)

say 'instructions'
for m in plain adapted; do
    timeout -s INT "$seconds" "$graft" train "$here/sft.yaml" \
        model.base=$m data.train=alpaca-train.json output_dir=sft-$m --overwrite ||
        [ $? -ge 124 ]
done

say 'result'
printf '%-44s %10s %10s\n' '' plain extended
printf '%-44s %10s %10s\n' 'bits a character, before instructions' "$before" "$after"
if [ "$english" ]; then
    printf '%-44s %10s %10s\n' 'bits a character of English' \
        "$(TEMPLATE=none per_character "$english" plain)" "$(TEMPLATE=none per_character "$english" adapted)"
fi
newest() { # newest RUN: its last checkpoint
    find "$1" -maxdepth 1 -name 'checkpoint-*' | sort -V | tail -n 1
}
row() { # row TEXT COMMAND...: of both models
    local text=$1 plain adapted
    shift
    plain=$("$@" plain "$(newest sft-plain)")
    adapted=$("$@" adapted "$(newest sft-adapted)")
    printf '%-44s %10s %10s\n' "$text" "$plain" "$adapted"
}
row "bits a character after $seconds s of instructions" per_character alpaca-held.jsonl
row 'seconds to generate 1,000 characters' per_thousand
