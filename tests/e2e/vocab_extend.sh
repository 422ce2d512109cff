#!/bin/bash
# graft vocab extend: a folder and a GGUF with new pieces, what is said of it, what is refused; the result is a model like others.
# shellcheck disable=SC2086 # $X is a command and its first words
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
G=$GRAFT V=$SOURCE/tests/golden/vocab
X="$G vocab extend --model"
cp -r "$TINY" base
chmod -R u+w base
printf '%s\n' 没有人问为什么，河边的水车整夜转动。 "The mill by the river" '' 水车和12只猫 >held.txt
printf '{"text": "%s"}\n' 河边的水车整夜转动。 没有人问为什么 >held.jsonl
# has FILE KEY VALUE: of JSON, a line a key
has() { grep -qE "^ *\"$2\": $3,?\$" "$1"; }

check "a folder" bash -c '"$@" >folder.txt 2>folder.err' - \
    $X base --vocab "$V/bpe.json" --out ext --text held.txt --text held.jsonl
check "it says what was added" grep -q "ext: [0-9]* new pieces, ids 640 to [0-9]*; [0-9]* rows, before 640" folder.txt
check "and of what" grep -q "pieces: [0-9]* new, [0-9]* already there (.*), 2 control or added tokens" folder.txt
check "and tokens a line" grep -Eq "held-out text, 5 lines: [0-9.]+ tokens a line, before [0-9.]+; .* times fewer" folder.txt
none "nothing on standard error" "a warning" folder.err
check "config.json knows both sizes" has ext/config.json graft_base_vocab_size 640
check "the new one is that of the rows" has ext/config.json vocab_size 88[0-9]
check "the template went along" same base/chat_template.jinja ext/chat_template.jinja
check "the generation config too" same base/generation_config.json ext/generation_config.json
check "a GGUF" bash -c '"$@" >gguf.json' - $X base --vocab "$V/sp.model" --out ext.gguf --size 40 \
    --init mean --pad-to-multiple 64 --text held.txt --json --dtype bf16
for kv in "new 40" "rows 704" "padding 24" "first_new 640" "rows_before 640" "lines 3"; do
    # shellcheck disable=SC2086 # two words
    check "as JSON: $kv" has gguf.json $kv
done
check "as JSON: the type" has gguf.json dtype '"bf16"'
check "the rest is beyond the size" has gguf.json "beyond the size asked for" "[1-9][0-9]*"
check "without held-out text that is said" bash -c '$1 base --vocab "$2" --out other >o.txt && grep -q "not measured" o.txt' \
    - "$X" "$V/sp.model"

# Both are models: ids of an English line stay, a Chinese one is shorter; they train and merge on.
ids() { "$G" tokenize --model "$1" --plain; }
echo "The mill by the river turned all night." >en.txt
check "old text keeps its ids" bash -c 'for m in base ext ext.gguf; do "$1" tokenize --model $m --plain en.txt >$m.ids || exit 1
    done; cmp base.ids ext.ids && cmp base.ids ext.gguf.ids' - "$G"
shorter() { [ "$(echo 河边的水车整夜转动 | ids ext | wc -w)" -lt "$(echo 河边的水车整夜转动 | ids base | wc -w)" ]; }
check "new text is shorter" shorter
printf '%s\n' 'model: {base: ext, dtype: fp32}' 'data: {train: held.jsonl, cache: none, template: none}' \
    'train: {max_steps: 2, batch_size: 2, objective: sft}' 'output_dir: run' >r.yaml
sed -i 's/, objective: sft//' r.yaml
check "it trains" "$G" train r.yaml
check "it merges, and stays extended" bash -c '"$1" merge run --out m.gguf && "$1" merge --model m.gguf --out merged' - "$G"
check "also after both formats" has merged/config.json graft_base_vocab_size 640
check "inspect says so" bash -c '"$1" inspect ext | grep "extended_from.*640"' - "$G"
check "it generates" "$G" generate --model ext.gguf --prompt 河边的水车 --max-tokens 4
check "it can be extended again" bash -c '"$@" 2>again.err' - $X ext --vocab "$V/sp.model" --out again --size 5
check "which is said" grep -q "was extended before, from id 640 on" again.err

# Pieces of our own, learned on top of the base: its merges are taken as they are
mkdir own
for i in $(seq 20); do cat held.txt; done >learn.txt
check "pieces are learned" "$G" vocab train --model base --text learn.txt --only cjk --size 30 --out own/tokenizer.json
check "and added" bash -c '$1 base --vocab own/tokenizer.json --out own.gguf --text held.txt --json >own.json' - "$X"
pairs() { [ "$(grep -oE '"(new|merges)": [0-9]+' own.json | sort -u | grep -oE '[0-9]+' | uniq | wc -l)" = 1 ]; }
check "as many merges as pieces" pairs
check "none is intermediate" has own.json intermediate 0
tokens() { for m in own own.gguf; do "$G" tokenize --model $m --plain held.txt >$m.ids || return 1; done; }
check "both are tokenizers" tokens
check "ids are those of the vocabulary" same own.ids own.gguf.ids

# A quantised base
check "a quantised base" "$G" merge --model base --out q8.gguf --dtype q8_0
check "becomes bf16" bash -c '"$@" >q.json 2>q.err' - $X q8.gguf --vocab "$V/bpe.json" --out q.gguf --json
check "bf16 it is" has q.json dtype '"bf16"'
check "which is explained" grep -q "q8.gguf is quantised (q8_0): the extended model is written as bf16, as" q.err
check "or what is asked for" $X q8.gguf --vocab "$V/bpe.json" --out q2.gguf --dtype q8_0

# Held-out text in another encoding; a vocabulary in a GGUF that is larger than what is read whole
iconv -f utf-8 -t gb18030 held.txt >gb.txt
$X base --vocab "$V/bpe.json" --out utf8.gguf --text held.txt >utf8.txt 2>/dev/null
check "text in another encoding" bash -c '"$@" >gb.out' - \
    $X base --vocab "$V/bpe.json" --out gb.gguf --text gb.txt --encoding gb18030
check "is the same text" bash -c 'grep -h "^held-out" utf8.txt >u.line && grep -h "^held-out" gb.out | cmp - u.line'
cp own.gguf large.gguf
truncate -s 300M large.gguf
check "a large GGUF as vocabulary" $X base --vocab large.gguf --out from-large.gguf

# Refused
refused "text in an encoding that is not named" 3 "--encoding" $X base --vocab "$V/bpe.json" --out x --text gb.txt
refused "an unknown encoding" 2 "klingon" $X base --vocab "$V/bpe.json" --out x --text gb.txt --encoding klingon
refused "an encoding of no text" 2 "--text" $X base --vocab "$V/bpe.json" --out x --encoding gb18030
head -c 3000 "$V/sp.model" >cut.model
: >none.txt
refused "no model" 2 "give --model" "$G" vocab extend --vocab "$V/bpe.json" --out x
refused "no vocabulary" 2 "give --vocab" $X base --out x
refused "no output" 2 "give --out" $X base --vocab "$V/bpe.json"
refused "another init" 2 "expected pieces or mean" $X base --vocab "$V/bpe.json" --out x --init zero
refused "a size of none" 2 "--size" $X base --vocab "$V/bpe.json" --out x --size 0
refused "a huge multiple" 2 "--pad-to-multiple" $X base --vocab "$V/bpe.json" --out x --pad-to-multiple 99999999
refused "a quantised folder" 2 "a quantised type needs a GGUF" $X base --vocab "$V/bpe.json" --out x --dtype q8_0
refused "the same vocabulary" 3 "nothing to add" $X base --vocab base --out x
refused "no vocabulary file" 3 "missing.model" $X base --vocab missing.model --out x
refused "a text as vocabulary" 3 "held.txt: no SentencePiece model" $X base --vocab held.txt --out x
refused "an adapter on the model" 2 "merge it first" $X run --vocab "$V/bpe.json" --out x
refused "over its vocabulary" 2 "an input is never replaced" $X base --vocab ext --out ext --overwrite
refused "over its text" 2 "held.txt" $X base --vocab "$V/bpe.json" --text held.txt --out held.txt --overwrite
refused "over what is there" 2 "exists" $X base --vocab "$V/bpe.json" --out ext
refused "empty held-out text" 3 "no lines" $X base --vocab "$V/bpe.json" --text none.txt --out x
refused "a damaged model" 3 "cut.model" $X base --vocab cut.model --out x
check "nothing was written" test ! -e x
finish
