#!/bin/bash
# What is written never replaces an input of the same command, nor a file without --overwrite, nor a folder that graft did not make.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
G=$GRAFT
fresh() { # a folder with a model, data, a run of it, a GGUF, and somebody's documents
    rm -rf place
    mkdir -p place/docs place/base
    cd place || exit 1
    cp "$TINY"/*.json "$TINY/chat_template.jinja" "$TINY/model.safetensors" base
    rm -f base/golden.json
    chmod -R u+w base
    echo thesis >docs/thesis.txt
    head -8 "$TINY/train.jsonl" >d.jsonl
    printf '%s\n' 'model: {base: base, dtype: fp32}' 'data: {train: d.jsonl, cache: none}' \
        'train: {max_steps: 2, batch_size: 2}' 'output_dir: run' >r.yaml
    if [ ! -d ../run ]; then
        { "$G" train r.yaml && "$G" merge --model base --dtype fp32 --out base.gguf && mv run base.gguf ..; } >../fresh.log 2>&1
    fi
    cp -r ../run ../base.gguf .
    cd ..
}
all() { (cd place && find . -type f ! -name run.log -exec sha256sum {} + | sort -k 2); }
# kept NAME WORDS COMMAND...: refused with code 2 and WORDS; every file is as it was
kept() {
    local name=$1 words=$2
    shift 2
    all >before
    refused "$name" 2 "$words" bash -c 'cd place && exec "$@"' - "$@"
    all >after
    check "$name: nothing was touched" same before after
}
in_place() { (cd place && "$@"); }
fresh
check "the run to work with" test -s place/run/adapter/adapter_model.safetensors
check "its folder bears the mark" grep -q '^graft .* run$' place/run/.graft
check "so does its adapter" grep -qx adapter_model.safetensors place/run/adapter/.graft

# ---- train ----
for how in "" --overwrite --resume; do
    # shellcheck disable=SC2086 # none or one word
    for dir in docs . ../place; do kept "train $how into $dir" "is no run of graft" "$G" train r.yaml output_dir=$dir $how; done
    kept "train $how into its base" "output_dir base would replace its input base" "$G" train r.yaml output_dir=base $how
done
kept "train into its data" "would replace its input d.jsonl" "$G" train r.yaml output_dir=d.jsonl
kept "train into a file" "is a file" "$G" train r.yaml output_dir=docs/thesis.txt
kept "train over the adapter it starts from" "adapter.init_from: a run in output_dir run would replace" \
    "$G" train r.yaml adapter.init_from=run --overwrite
kept "also named otherwise" "would replace" "$G" train r.yaml adapter.init_from=docs/../run/adapter --overwrite
ln -s run place/link
kept "also through a link" "would replace" "$G" train r.yaml adapter.init_from=link/adapter --overwrite
rm place/link
mkdir -p place/mine/adapter place/mine/checkpoint-7
for f in adapter/notes.txt checkpoint-7/notes.txt run.log loss.svg trainer_state.json; do echo mine >place/mine/$f; done
printf '# mine\n' | cat - place/r.yaml >place/mine/recipe.yaml
for how in "" --overwrite --resume; do
    # shellcheck disable=SC2086
    kept "train $how into files with a run's names" "is no run of graft" "$G" train mine/recipe.yaml output_dir=mine $how
done
fresh
train() { (cd place && "$G" train r.yaml "$@"); }
echo mine | tee place/run/notes.txt >place/run/adapter/notes.txt
mkdir -p place/run/checkpoint-9
echo mine >place/run/checkpoint-9/notes.txt
echo mine >place/run/checkpoint-2/notes.txt
check "train --overwrite of a run" train --overwrite train.max_steps=1
check "replaces it" test ! -e place/run/checkpoint-2/state.h5 -a -s place/run/checkpoint-1/state.h5
for f in notes.txt adapter/notes.txt checkpoint-2/notes.txt checkpoint-9/notes.txt; do
    check "and leaves a stranger's $f" grep -qx mine place/run/$f
done
fresh
rm place/run/.graft place/run/*/.graft
check "a run without the mark, of an older graft, is known by its files" train --overwrite
check "and is marked from then on" test -s place/run/.graft -a -s place/run/adapter/.graft
fresh
rm place/run/.graft place/run/*/.graft
check "and can be resumed" train --resume train.lr_scheduler=cosine
mkdir place/empty
check "an empty folder is free" train output_dir=empty
check "so is a new one below somebody's" train output_dir=docs/run

# ---- a folder that is moved away from its run ----
fresh
moved() { # moved SETTING...: trains into place/long, which is moved away after the first save; loss.svg is the last of it
    rm -rf place/long place/away
    (cd place && exec "$G" train r.yaml output_dir=long train.max_steps=600 save.every=200 "$@") >long.log 2>&1 &
    until [ -e place/long/loss.svg ] || ! kill -0 $! 2>/dev/null; do sleep 0.01; done
    kill -STOP $!
    mv place/long place/away
}
evaluated=(data.eval=d.jsonl eval.every=50 train.learning_rate=3e-2 train.lr_scheduler=constant)
moved
kill -CONT $!
check "the run goes on" wait $!
check "saves the rest under its name" test -s place/long/adapter/adapter_model.safetensors -a -s place/long/recipe.yaml \
    -a -s place/long/metrics.jsonl
check "and says so" grep -q 'output_dir long was removed or moved away: it is made anew' place/long/run.log long.log
cp -r place/away kept
check "what was moved is a run that goes on elsewhere" in_place "$G" train r.yaml output_dir=away train.max_steps=600 \
    save.every=200 --resume
check "from where it was" same place/away/adapter/adapter_model.safetensors place/long/adapter/adapter_model.safetensors
for method in lora full; do
    moved "${evaluated[@]}" adapter.method=$method
    mkdir place/long
    kill -CONT $!
    check "$method, evaluated: the best until then went with it" wait $!
    made=long
    [ $method = lora ] || made=long/model
    check "and what it saves is whole" in_place "$G" eval --model $made --data d.jsonl
done
moved "${evaluated[@]}"
cp -r kept place/long
of_other() { (cd place/long && find . -type f -exec sha256sum {} + | sort -k 2); }
of_other >before
kill -CONT $!
wait $!
check "where another run stands it fails" test $? = 1
check "and says why" grep -q 'output_dir long is another folder than the one that this run began in' long.log
of_other >after
check "and writes nothing there" same before after

# ---- merge and export ----
fresh
merge() { local out=$1 words=$2; shift 2; kept "merge $* --out $out" "$words" "$G" merge "$@" --out "$out" --overwrite; }
input="is never replaced"
merge base "$input" --model base --adapter run
merge base "$input" --adapter run
merge base/ "$input" --adapter run/checkpoint-2
merge ./docs/../base "$input" --model base
merge . "contains" --model base --adapter run
merge .. "contains" --model base --adapter run
merge base.gguf "$input" --model base.gguf --adapter run
merge run "$input" --model base --adapter run
merge run/adapter "lies in" --model base --adapter run
merge docs "no model or adapter that graft wrote" --model base --adapter run
merge d.jsonl "is a file, and a folder is to be written" --model base --format hf
merge docs "is a folder" --model base --format gguf
ln -s base place/link
ln place/base.gguf place/hard.gguf
ln -s base.gguf place/soft.gguf
merge link "$input" --model base
merge base "$input" --model link
merge hard.gguf "$input" --model base.gguf
merge soft.gguf "$input" --model base.gguf
mkdir place/blobs place/snapshot
mv place/base/model.safetensors place/blobs/0
ln -s ../blobs/0 place/base/model.safetensors
merge blobs "contains base/model.safetensors" --model base
merge blobs/0 "$input" --model base --format gguf
fresh
export_() {
    local out=$1 words=$2
    shift 2
    kept "export $* --out $out" "$words" "$G" export --adapter run "$@" --out "$out" --overwrite
}
export_ run/adapter "$input" --model base --format peft
export_ docs "no model or adapter that graft wrote" --model base
export_ base/model.safetensors "lies in base" --model base --format gguf
mkfifo place/pipe
merge pipe "is a device or a pipe" --model base --format gguf
merge pipe "is a device or a pipe" --model base --format hf
export_ pipe "is a device or a pipe" --model base --format peft
check "a pipe is still one" test -p place/pipe
rm place/pipe
kept "without --overwrite" "exists already; --overwrite replaces it" "$G" export --adapter run --format gguf --out base.gguf
check "a folder that graft wrote" in_place "$G" merge --adapter run --dtype fp32 --out merged
kept "is not replaced without being asked" "merged exists already; --overwrite" "$G" merge --adapter run --out merged
check "is replaced with --overwrite" in_place "$G" merge --adapter run --dtype bf16 --out merged --overwrite
echo mine >place/merged/notes.txt
check "again" in_place "$G" merge --adapter run --dtype fp32 --out merged --overwrite
check "and a stranger's file in it stays" grep -qx mine place/merged/notes.txt
check "an adapter of an older graft" bash -c 'cp -r place/run/adapter place/old && rm place/old/.graft'
check "is replaced as well" in_place "$G" export --adapter run --out old --overwrite
check "a new file in an input's folder is no harm" in_place "$G" export --adapter run --format gguf --out run/lora.gguf

# ---- generate, eval, data make ----
fresh
kept "generate over its prompts" "$input" "$G" generate --model base --prompts d.jsonl --max-tokens 2 --out d.jsonl --overwrite
kept "eval over its data" "$input" "$G" eval --model base --data d.jsonl --out ./d.jsonl --overwrite
kept "eval into its model" "lies in base" "$G" eval --model base --data d.jsonl --out base/config.json --overwrite
kept "data make over a file" "d.jsonl exists already; --overwrite" "$G" data make school-math --n 2 --out d.jsonl
kept "data make over a folder" "docs is a folder" "$G" data make school-math --n 2 --out docs --overwrite
printf '{"prompt": "x"}\n' >place/p.jsonl
for command in "generate --model base --prompts p.jsonl --max-tokens 2" "eval --model base --data d.jsonl" \
    "data make school-math --n 2"; do
    rm -f place/o.jsonl
    # shellcheck disable=SC2086 # words
    check "$command" in_place "$G" $command --out o.jsonl
    # shellcheck disable=SC2086
    kept "$command, the second time" "o.jsonl exists already" "$G" $command --out o.jsonl
    echo old >place/o.jsonl
    # shellcheck disable=SC2086
    check "$command --overwrite" in_place "$G" $command --out o.jsonl --overwrite
    check "has written" grep -q '^{' place/o.jsonl
    # shellcheck disable=SC2086
    check "$command to /dev/null" in_place "$G" $command --out /dev/null
    # shellcheck disable=SC2086
    (in_place "$G" $command --out /dev/stdout) >piped 2>piped.log
    check "$command to /dev/stdout, a file" grep -q '^{' piped
    cp piped whole
    echo first >piped
    # shellcheck disable=SC2086
    (in_place "$G" $command --out -) >>piped 2>piped.log
    check "$command to -, which is standard output: after what is there, nothing written over" \
        cmp piped <(echo first && cat whole)
    check "and no file has that name" test ! -e place/-
    check "whatever follows the lines" test "$(grep -c '^{' whole)" = "$(grep -c '^{' place/o.jsonl)"
    # shellcheck disable=SC2086
    (in_place "$G" $command --out /dev/stdout) 2>piped.log | cat >piped
    check "$command to /dev/stdout, a pipe" grep -q '^{' piped
done
mkfifo place/fifo
cat place/fifo >from_fifo &
check "to a named pipe" in_place "$G" data make school-math --n 2 --out fifo
wait $!
check "which is read" test "$(wc -l <from_fifo)" = 2

# ---- a command that a signal ends leaves nothing unfinished ----
# ended NAME SIGNAL OUT COMMAND: while it writes OUT
ended() {
    local name=$1 signal=$2 out=$3 code job
    shift 3
    env -u SHELLOPTS "$@" >/dev/null 2>ended.log &
    job=$!
    until compgen -G "$out.tmp-*" >/dev/null || ! kill -0 "$job" 2>/dev/null; do sleep 0.002; done
    kill -s "$signal" "$job"
    wait "$job"
    code=$?
    check "$name: ended by it" test $code = $((128 + $(kill -l "$signal")))
    check "$name: nothing is left" bash -c '! compgen -G "$0*"' "$out"
    check "$name: and that is said" grep -q '^graft: interrupted: what was being written is removed$' ended.log
}
ended "a file, SIGTERM" TERM ended.jsonl "$G" data make school-math --n 100000000 --out ended.jsonl
for signal in HUP USR1 XCPU; do
    ended "a file, SIG$signal" $signal ended.jsonl "$G" data make school-math --n 100000000 --out ended.jsonl
done
large_model large 30000
ended "a folder, SIGTERM" TERM weights "$G" merge --model large --format hf --out weights
ended "a GGUF, SIGTERM" TERM ended.gguf "$G" merge --model large --format gguf --out ended.gguf
timeout -s INT 1 "$G" data make school-math --n 100000000 --out ended.jsonl 2>ended.log
check "a file, SIGINT: nothing is left" bash -c '! compgen -G "ended.jsonl*"'
(ulimit -f 300 && "$G" data make school-math --n 100000 --out ended.jsonl) 2>ended.log
check "a file that may not grow any more is an error" grep -q '^graft: error: .*: File too large$' ended.log
check "and nothing is left of it" bash -c '! compgen -G "ended.jsonl*"'
finish
