#!/bin/bash
# A run that is interrupted, resumed, extended, moved, and used by its folder or its checkpoints.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
G=$GRAFT
cp -r "$TINY" base
cp base/train.jsonl d.jsonl
cat >tiny.yaml <<Y
model: {base: base, dtype: fp32}
adapter: {rank: 4, alpha: 8, dropout: 0.1}
data: {train: d.jsonl, eval: 0.2, cache: none}
train: {max_steps: 12, batch_size: 5, learning_rate: 1.0e-2}
eval: {every: 4}
save: {every: 4, save_total_limit: 9}
log: {every: 1}
output_dir: runs/a
Y
train() { # train NAME [options]
    local name=$1
    shift
    "$G" train tiny.yaml "output_dir=runs/$name" "$@"
}
metrics() {
    sed -E 's/"(tokens_per_second|eval_runtime|eval_samples_per_second)": [^,}]*,? ?//g; s/, \}/}/' "runs/$1/metrics.jsonl"
}
same_run() { # same_run A B: bit for bit
    metrics "$1" >"$1.metrics" && metrics "$2" >"$2.metrics" && same "$1.metrics" "$2.metrics" &&
        same "runs/$1/adapter/adapter_model.safetensors" "runs/$2/adapter/adapter_model.safetensors"
}
holds() { grep -qF -- "$2" "$1" || { cat "$1"; return 1; }; }
check "a run" train a

# ---- signals ----
# start NAME [options]: a run in the background, its output in NAME.log; $pid is the program itself
start() {
    local name=$1
    shift
    "$G" train tiny.yaml "output_dir=runs/$name" "$@" >"$name.log" 2>&1 &
    pid=$!
}
until_steps() { # until_steps NAME N: it has logged so many steps
    for _ in $(seq 600); do
        [ "$(grep -c '"loss"' "runs/$1/metrics.jsonl" 2>/dev/null)" -ge "$2" ] 2>/dev/null && return 0
        sleep 0.02
    done
    return 1
}
ended() { # ended NAME CODE: of the run in the background
    wait $pid
    local code=$?
    [ $code = "$2" ] || { echo "code $code"; cat "$1.log"; return 1; }
}
start int train.max_steps=4000 save.every=1000 eval.every=1000
check "a long run begins" until_steps int 3
kill -INT $pid
check "Ctrl-C: code 130" ended int 130
check "it says at once what happens" holds int.log 'the step is being finished and saved (a second time: leave at once)'
step=$(ls runs/int | sed -n 's/^checkpoint-//p' | sort -n | tail -1)
check "it says where it was saved" holds int.log "interrupted: at step $step of 4000, saved in runs/int/checkpoint-$step"
check "and it was" test -s "runs/int/checkpoint-$step/state.h5" -a -s "runs/int/checkpoint-$step/adapter_model.safetensors"
check "the log tells of it" grep -qE "^interrupted 20.*: at step $step of 4000, saved in runs/int/checkpoint-$step" runs/int/run.log
check "so does the mark" holds runs/int/.graft 'status: interrupted'
# A data set so large that an evaluation takes its time.
for _ in $(seq 40); do cat base/train.jsonl; done >many.jsonl
start twice train.max_steps=4000 save.every=2 eval.every=4 data.eval=many.jsonl data.max_length=512
check "a run with long evaluations begins" until_steps twice 4
kill -INT $pid
kill -INT $pid
sleep 0.1
kill -INT $pid 2>/dev/null
wait $pid
code=$?
check "Ctrl-C twice: code 130" test $code = 130
named=$(grep -oE '(the last checkpoint is|saved in) runs/twice/checkpoint-[0-9]+' twice.log | tail -1)
check "it names the last checkpoint" test -n "$named"
check "and is whole" test -s "${named##* }/adapter_model.safetensors" -a -s "${named##* }/state.h5"
long=(train.max_steps=9 save.every=100 eval.every=4 data.eval=many.jsonl data.max_length=512)
start eval "${long[@]}"
check "a run reaches its first evaluation" until_steps eval 4
kill -INT $pid
check "an interrupt there" ended eval 130
check "is resumed" train eval --resume "${long[@]}"
check "the same in one go" train whole "${long[@]}"
check "the evaluation is made up for: bit for bit the uninterrupted run" same_run eval whole
check "the log holds both parts" test "$(grep -c '^graft .* started ' runs/eval/run.log)" = 2
check "and how each ended" test "$(grep -cE '^(interrupted|finished) ' runs/eval/run.log)" = 2
mkdir runs/a/checkpoint-12.tmp-99999 # a process that was killed while it wrote
check "resume" train a --resume
check "removes what a killed one left half-written" test ! -e runs/a/checkpoint-12.tmp-99999

# ---- settings ----
refused "another learning rate" 2 "train.learning_rate: 0.1, it began with 0.01" train a --resume train.learning_rate=0.1
train a --resume train.learning_rate=0.1 adapter.alpha=99 train.seed=7 'adapter.target_modules=[q_proj]' 2>several.log
for s in "train.learning_rate: 0.1, it began with 0.01" "adapter.alpha: 99, it began with 8" "train.seed: 7, it began with 42" \
    "adapter.target_modules: [q_proj], it began with [all-linear]" "adapter.init_from"; do
    check "all of them are named: $s" holds several.log "$s"
done
check "the same settings in other words" train a --resume train.learning_rate=0.0100 'adapter.target_modules=all-linear' \
    model.compute=exact
check "what is free to change" train a --resume threads=1 log.every=2 save.every=0 eval.every=3 train.micro_batch_tokens=300 \
    save.save_total_limit=2 log.plot=false train.on_nonfinite=skip
modules() { "$G" train tiny.yaml output_dir=runs/o train.max_steps=2 "adapter.target_modules=[$1]" "${@:2}"; }
check "names in one order" modules "q_proj, v_proj"
check "and in another" modules "v_proj, q_proj" --resume
refused "other data" 2 "data.train: - path: $TINY/train.jsonl format: auto" \
    train a --resume "data.train=[{path: $TINY/train.jsonl, limit: 9}]"
check "the same data elsewhere" train a --resume "data.train=$TINY/train.jsonl"
head -9 d.jsonl >e.jsonl && mv d.jsonl kept.jsonl && mv e.jsonl d.jsonl
refused "the same file with other lines" 2 "its samples are others than those it began with" train a --resume
mv kept.jsonl d.jsonl
refused "another dtype" 2 "model.dtype: bf16, it began with fp32" train a --resume model.dtype=bf16

train a --resume train.num_train_epochs=7 2>epochs.log
check "epochs of a run of max_steps: it is said that they change nothing" holds epochs.log \
    "train.num_train_epochs: 7, it began with 3: that changes nothing"

# ---- micro-batches ----
check "a run in small micro-batches" train small train.micro_batch_tokens=40
cp -r runs/small runs/again && rm -rf runs/again/checkpoint-8 runs/again/checkpoint-12 runs/again/adapter
cp -r runs/again runs/other
train again --resume >again.log 2>&1
check "goes on in as small ones" grep -q 'memory: micro-batches of up to [0-9]* tokens, .*, as in the checkpoint' again.log
check "bit for bit" same_run small again
train other --resume train.micro_batch_tokens=300 >other.log 2>&1
check "in others where they are named, which is said" \
    grep -qE 'micro-batches of up to 300 tokens, the checkpoint.s had up to [0-9]+: from here on sums .* split otherwise' other.log
check "and seen" differ runs/small/adapter/adapter_model.safetensors runs/other/adapter/adapter_model.safetensors

# ---- more steps ----
steps() { sed -n 's/^step: //p' "runs/$1/.graft"; }
constant=(train.lr_scheduler=constant save.best=false)
check "a run at a constant rate" train c "${constant[@]}" train.max_steps=8
check "is extended" train c --resume "${constant[@]}" train.max_steps=12
check "to as many steps" test "$(steps c)" = "12 of 12"
train d "${constant[@]}" train.batch_size=999 --overwrite train.max_steps=1 2>batch.log
check "a batch larger than the data is said in one line" grep -qE \
    'train.batch_size is 999 and an epoch has [0-9]+ samples: each step takes all of them' batch.log
check "the same in one go" train d "${constant[@]}" --overwrite
check "gives the same adapter, bit for bit" same runs/c/adapter/adapter_model.safetensors runs/d/adapter/adapter_model.safetensors
check "epochs" train p "${constant[@]}" train.max_steps=null train.num_train_epochs=1
check "are extended as well" train p --resume "${constant[@]}" train.max_steps=null train.num_train_epochs=2
check "by its folder, with the recipe edited" \
    bash -c 'sed -i "s/num_train_epochs: 2/num_train_epochs: 3/" runs/p/recipe.yaml && "$0" train runs/p --resume' "$G"
check "three epochs" test "$(steps p)" = "12 of 12"
refused "fewer steps than are done" 2 "train.max_steps makes 5 steps, and 12 are done" \
    train c --resume "${constant[@]}" train.max_steps=5
wsd=(train.lr_scheduler=wsd train.wsd_decay_ratio=0.25 train.warmup_steps=2 save.best=false)
check "wsd" train w "${wsd[@]}"
refused "whose decay is over" 2 "Only train.lr_scheduler: constant, or wsd before its decay" \
    train w --resume "${wsd[@]}" train.max_steps=16
rm -rf runs/w/checkpoint-12
check "before its decay" train w --resume "${wsd[@]}" train.max_steps=16
check "is the longer run" train v "${wsd[@]}" train.max_steps=16
check "bit for bit" same runs/w/adapter/adapter_model.safetensors runs/v/adapter/adapter_model.safetensors
refused "cosine" 2 "train.max_steps makes 16 steps, it began with 12, and its schedule was made for these" \
    train a --resume train.max_steps=16
train a --resume train.max_steps=16 2>cosine.log
check "and is told the way" holds cosine.log "adapter.init_from"
check "which works" train next adapter.init_from=runs/a train.max_steps=2
train a --resume >done.log 2>&1
check "a finished run says that it is complete" holds done.log "the run is complete"
check "and how to go on, which is not by more steps" holds done.log \
    "begin another run in its own output_dir (with adapter.init_from"
early=(train.max_steps=40 eval.every=2 eval.early_stopping_patience=1 train.learning_rate=0.5)
check "a run that stops early" train e "${early[@]}"
before=$(steps e)
check "has not gone to its end" test "$before" != "40 of 40"
check "stays where it stopped" train e --resume "${early[@]}"
check "at the same step" test "$(steps e)" = "$before"
check "with more patience it goes on" train e --resume "${early[@]}" eval.early_stopping_patience=9
check "further" test "$(steps e)" != "$before"

# ---- what is kept ----
check "save_total_limit" train limit save.every=1 save.save_total_limit=2 eval.every=3
ls -d runs/limit/checkpoint-* | wc -l >count
best=$(sed -n 's/^best: step \([0-9]*\),.*/\1/p' runs/limit/.graft)
check "keeps so many besides the best" test "$(cat count)" = 3
check "the best among them" test -s "runs/limit/checkpoint-$best/state.h5"

check "a best adapter without a checkpoint of its step" \
    train nosave save.every=0 eval.every=5 train.lr_scheduler=constant train.max_steps=11 train.learning_rate=0.3
best=$(sed -n 's/.*"best_model_checkpoint": "\(.*\)",/\1/p' runs/nosave/trainer_state.json)
check "is named where it is" test -s "$best/adapter_model.safetensors"

# ---- a run by its folder, from anywhere ----
here=$PWD
away() { (cd / && "$@"); }
check "a folder is a recipe" away "$G" train "$here/runs/a" --resume
refused "an existing run" 2 "already holds a run" "$G" train runs/a
refused "a folder without a recipe" 3 "without recipe.yaml" "$G" train base
check "generate elsewhere" away "$G" generate --adapter "$here/runs/a" --prompt x --max-tokens 2
check "eval elsewhere" away "$G" eval --adapter "$here/runs/a/checkpoint-4" --data "$here/d.jsonl"
rm -rf moved && mkdir moved && cp -r runs/a moved/a
check "a copy of a run finds its base" away "$G" generate "$here/moved/a" --prompt x --max-tokens 2
check "and is resumed in its own place" away "$G" train "$here/moved/a" --resume eval.every=5
check "not in the old one" bash -c 'grep -q "  every: 5" moved/a/recipe.yaml && ! grep -q "  every: 5" runs/a/recipe.yaml'
mkdir project && cp -r base project/base
(cd project && sed 's#runs/a#run#; s#d.jsonl#../d.jsonl#' ../tiny.yaml >r.yaml && "$G" train r.yaml) >project.log 2>&1
mv project other
check "a run that was moved with its base" away "$G" generate --adapter "$here/other/run" --prompt x --max-tokens 2
mv other/base other/gone
refused "a base that is gone: both places are named" 3 "neither $here/project/base nor, from its folder, ../../base" \
    "$G" generate --adapter other/run --prompt x

# ---- a checkpoint is an adapter ----
c=runs/a/checkpoint-8
generate() { "$G" generate --dtype fp32 --prompt 'What is 3 + 4?' --max-tokens 8 "$@" 2>/dev/null; }
generate --adapter $c >c.out
generate --adapter runs/a >a.out
check "generate" test -s c.out
check "merge" "$G" merge --adapter $c --dtype fp32 --out merged
generate --model merged >m.out
check "says the same" same c.out m.out
check "export" "$G" export --adapter $c --out peft
check "the same matrices" same $c/adapter_model.safetensors peft/adapter_model.safetensors
check "export to GGUF" "$G" export --adapter $c --out lora.gguf
check "eval" "$G" eval --adapter $c --data d.jsonl
check "chat" bash -c 'echo hi | "$0" chat --max-tokens 2 "$1"' "$G" $c
check "init_from" train from adapter.init_from=$c train.max_steps=1
mv runs/a runs/b
check "and a run is resumed when what it began with is gone" train from --resume adapter.init_from=$c train.max_steps=1
mv runs/b runs/a
check "the last one is the run's adapter, bit for bit" bash -c '"$0" train tiny.yaml output_dir=runs/l save.best=false' "$G"
check "as its file says" same runs/l/adapter/adapter_model.safetensors runs/l/checkpoint-12/adapter_model.safetensors
check "a run of every weight" train full adapter.method=full train.learning_rate=1e-3 train.max_steps=2
refused "whose checkpoint is none" 3 "is a checkpoint without an adapter" "$G" generate runs/full/checkpoint-2 --prompt x

# ---- inspect ----
"$G" inspect runs/a >inspect.out 2>&1
for s in 'status .* finished' "base .* $here/base" "data .* $here/d.jsonl" 'step .* 12 of 12' 'best .* step [0-9]*, eval loss'; do
    check "inspect of a run: $s" grep -qE "^  $s" inspect.out
done
check "inspect --json of a run" bash -c '"$0" inspect runs/a --json | grep "\"status\": \"finished\""' "$G"
check "inspect of one that was interrupted" bash -c '"$0" inspect runs/int | grep "status .* interrupted"' "$G"
"$G" inspect $c >inspect.out 2>&1
check "inspect of a checkpoint: its step" grep -qE '^  step  *8$' inspect.out
check "its tensors by kind" grep -qF '   2 x f32   4 x 64           /adam_exp_avg/model.layers.*.self_attn.q_proj.lora_A.weight' \
    inspect.out
check "all of them counted" grep -q '^84 tensors' inspect.out

# ---- the log ----
check "run.log: version and start" grep -qE '^graft [0-9.]+.*, started 20[0-9-]+ ' runs/a/run.log
check "run.log: the command line" grep -q "^command: .*graft train tiny.yaml output_dir=runs/a$" runs/a/run.log
check "run.log: the machine" grep -qE '^machine: (cpu-|far-|cuda:)[a-z0-9]+, [0-9]+ threads' runs/a/run.log
check "run.log: the counts" grep -q '^train: 16 samples' runs/a/run.log
check "run.log: the end" grep -qE '^finished 20[0-9-]+ .* at step 12 of 12' runs/a/run.log
refused "a run that fails" 1 "not finite" train fail train.learning_rate=1e38
check "run.log: the error" grep -qE '^failed 20.* at step [0-9]+ of 12: step [0-9]+: .*not finite' runs/fail/run.log
finish
