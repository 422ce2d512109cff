#!/bin/bash
# graft vocab train: kinds and forms of output, forms of text, the same pieces whatever the threads, on top of a model's tokenizer,
# and what is refused. (Pieces against the slow way: tests/unit/test_learn.c.)
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
learn() { "$GRAFT" vocab train "$@"; }

# Some thousand lines, the same in two forms; samples of the same text.
"$GRAFT" data make school-math --n 600 --seed 1 --language both --out math.jsonl 2>/dev/null
"$GRAFT" data make school-math --n 600 --seed 2 --language zh --out zh.jsonl 2>/dev/null
sed -E 's/[{}"\\]+/ /g' math.jsonl >math.txt
iconv -f utf-8 -t gb18030 math.txt >gb.txt
gzip -c math.txt >math.txt.gz
split -n l/2 math.txt half.

check "a SentencePiece vocabulary" learn --text math.txt --size 900 --out a.model
check "a tokenizer.json" learn --text math.txt --size 900 --out a.json
for threads in 1 3; do
    learn --text math.txt --size 900 --out t$threads.model --threads $threads >/dev/null 2>&1
    learn --text math.txt --size 900 --out t$threads.json --threads $threads >/dev/null 2>&1
done
check "the same pieces whatever the threads, spm" same t1.model t3.model
check "the same pieces whatever the threads, bpe" same t1.json t3.json
learn --text gb.txt --encoding gb18030 --size 900 --out gb.model >/dev/null 2>&1
learn --text math.txt.gz --size 900 --out gz.model >/dev/null 2>&1
learn --text half.ab half.aa --size 900 --out halves.model >/dev/null 2>&1
check "another encoding is the same text" same a.model gb.model
check "packed text is the same text" same a.model gz.model
check "files in any order are the same text" same a.model halves.model
mkdir -p folder/sub
cp half.aa folder/1.txt
cp half.ab folder/sub/2.txt
echo "not data" >folder/README.md
learn --text folder --size 900 --out folder.model >/dev/null 2>&1
check "a folder is the text of its files" same a.model folder.model
check "samples of a data file" learn --text math.jsonl zh.jsonl --size 700 --out samples --json
check "into a folder that graft opens" bash -c "echo 'Tom has 5 apples.' | '$GRAFT' tokenize --model samples --plain >ids && \
    '$GRAFT' tokenize --model samples --decode --plain ids | grep -x 'Tom has 5 apples.'"
check "an spm folder" learn --text math.jsonl --kind spm --size 700 --out spm --special '<|im_start|>' --special '<|im_end|>'
check "into a folder that graft opens, spm" bash -c "echo 'Tom has 5 apples.' | '$GRAFT' tokenize --model spm --plain >ids && \
    '$GRAFT' tokenize --model spm --decode --plain ids | grep -x 'Tom has 5 apples.'"
check "its control tokens" bash -c "echo '<|im_end|>' | '$GRAFT' tokenize --model spm --plain | grep -xE '\[4\]|\[[0-9]+, 4\]'"

# On top of a model: text without the new pieces keeps its ids, the other takes fewer tokens.
check "on top of a model" learn --model "$TINY" --text zh.jsonl --only cjk --size 300 --out top --json
check "its other text keeps its ids" bash -c "printf '%s\n' 'Hello, world! 42' '  x = y;' >other && \
    '$GRAFT' tokenize --model '$TINY' --plain other >was && '$GRAFT' tokenize --model top --plain other >is && cmp was is"
fewer() {
    sed -E 's/[{}"\\]+/ /g' zh.jsonl >zh.txt
    local was is
    was=$("$GRAFT" tokenize --model "$TINY" --plain zh.txt | tr -cd , | wc -c)
    is=$("$GRAFT" tokenize --model top --plain zh.txt | tr -cd , | wc -c)
    echo "$was $is"
    [ $((is * 4)) -lt $((was * 3)) ]
}
check "beside the model's own files" cmp top/chat_template.jinja "$TINY/chat_template.jinja"
check "and Chinese takes a quarter less at least" fewer

refused "nothing is replaced unasked" 2 "--overwrite" learn --text math.txt --size 900 --out a.model
check "asked, it is" learn --text math.txt --size 901 --out a.model --overwrite
refused "an input is never replaced" 2 "math.json" bash -c "cp math.txt math.json && '$GRAFT' vocab train --text math.json \
    --size 900 --out math.json --overwrite"
refused "no text" 2 "--text" learn --size 900 --out b.model
refused "no size" 2 "--size" learn --text math.txt --out b.model
refused "no place" 2 "--out" learn --text math.txt --size 900
refused "a size below bytes" 2 "260" learn --text math.txt --size 200 --out b.model
refused "a size below the characters" 2 "at least" learn --text math.txt --size 270 --out b.model
refused "a size beyond the text" 3 "no more than" learn --text math.txt --size 900000 --out b.model
most=$(learn --text math.txt --size 900000 --out b.model 2>&1 | sed -n 's/.*no more than \([0-9]*\) pieces.*/\1/p')
check "that many it has" learn --text math.txt --size "$most" --out most.model
refused "and not one more" 3 "no more than $most" learn --text math.txt --size $((most + 1)) --out b.model
refused "a size that no model has" 2 "at most" learn --text math.txt --size 900000000 --out b.model
refused "a kind that the name is not" 2 "NAME.json" learn --text math.txt --kind bpe --size 900 --out b.model
refused "a kind that the model is not" 2 "other kind" learn --text math.txt --model "$TINY" --kind spm --size 9 --out b.model
refused "coverage of bytes" 2 "--character-coverage" learn --text math.txt --character-coverage 0.9 --size 900 --out b.json
refused "control tokens for a model" 2 "--special" learn --text math.txt --model "$TINY" --special '<x>' --size 9 --out b.json
refused "an unknown script" 2 "cyrillic" learn --text math.txt --only klingon --size 900 --out b.model
refused "nothing of that script" 3 "--only" learn --text math.txt --only thai --size 900 --out b.model
: >empty.txt
refused "an empty file" 3 "empty" learn --text empty.txt --size 900 --out b.model
refused "a file that is missing" 3 "none.txt" learn --text none.txt --size 900 --out b.model
refused "bytes that are no UTF-8, with their line" 3 "bad.txt:2" bash -c "printf 'one\ntw\xff\n' >bad.txt && '$GRAFT' vocab train \
    --text bad.txt --size 900 --out b.model"
check "read as U+FFFD on demand" learn --text bad.txt math.txt --encoding replace --size 900 --out c.model
refused "an unknown encoding" 2 "klingon" learn --text math.txt --encoding klingon --size 900 --out b.model
check "nothing was left behind" bash -c '! ls | grep -E "^b\.|tmp-"'
finish
