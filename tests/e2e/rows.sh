#!/bin/bash
# Trained rows of tokens, end to end: the new tokens of an extended model alone, then a LoRA with them; resumed, evaluated, merged,
# exported; what cannot be.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
G=$GRAFT
# The tiny models as if their last 40 tokens were new.
extended() { # extended NAME FROM
    cp -r "$2" "$1" && sed -i 's/"hidden_size"/"graft_base_vocab_size": 600,\n  "hidden_size"/' "$1/config.json"
}
extended base "$TINY"
extended untied "$SOURCE/tests/golden/tiny-qwen2"
cp base/train.jsonl d.jsonl
cat >rows.yaml <<Y
model: {base: base, dtype: fp32}
adapter: {method: embeddings, rows: new}
data: {train: d.jsonl, eval: 0.2, cache: none}
train: {max_steps: 8, batch_size: 5, learning_rate: 5.0e-2}
eval: {every: 4}
save: {every: 4, save_total_limit: 9}
log: {every: 1}
output_dir: runs/a
Y
holds() { grep -qF -- "$2" "$1" || { cat "$1"; return 1; }; }
lacks() { ! grep -qF -- "$2" "$1" || { cat "$1"; return 1; }; }
train() { # train NAME [options]
    local name=$1
    shift
    "$G" train rows.yaml "output_dir=runs/$name" "$@" >"$name.out" 2>"$name.err" || { cat "$name.err"; return 1; }
}
loss() { # loss ARGUMENTS: of an evaluation
    "$G" eval "$@" --data d.jsonl --dtype fp32 --json 2>/dev/null | sed -n 's/.*"loss": \([0-9.]*\).*/\1/p'
}
near() {
    awk -v a="$1" -v b="$2" 'BEGIN {exit !(a > 0 && b > 0 && a - b < 2e-5 * b && b - a < 2e-5 * b)}' || { echo "$1 $2"; return 1; }
}
less() { awk -v a="$1" -v b="$2" 'BEGIN {exit !(a > 0 && a < b)}' || { echo "$1 $2"; return 1; }; }

check "the new rows alone are trained" train a
check "it says which" holds a.err 'trained rows: 40 of 640 (600 to 639) of the embedding, which is the head too'
check "of 40 rows of 64" holds a.out 'trainable parameters  2,560'
check "nothing else is in the file" test "$(stat -c %s runs/a/adapter/adapter_model.safetensors)" -lt 10500
check "it learns" less "$(loss --adapter runs/a)" "$(loss --model base)"
check "inspect knows it" sh -c "'$G' inspect runs/a/adapter | grep -q 'TRAINABLE_TOKENS'"

# The last checkpoint but one, and on from there.
check "a second run" train b
rm -r runs/b/checkpoint-8 runs/b/adapter
check "goes on from its checkpoint" train b --resume
check "bit for bit" same runs/a/adapter/adapter_model.safetensors runs/b/adapter/adapter_model.safetensors
check "and for another number of threads" train c threads=1
check "the same bits" same runs/a/adapter/adapter_model.safetensors runs/c/adapter/adapter_model.safetensors
for policy in selective full; do
    check "recomputed ($policy)" train r train.gradient_checkpointing=$policy --overwrite
    check "the same bits ($policy)" same runs/a/adapter/adapter_model.safetensors runs/r/adapter/adapter_model.safetensors
done
check "GRAFT_DEVICE=far" env GRAFT_DEVICE=far "$G" train rows.yaml output_dir=runs/far
check "gives the same bits" same runs/a/adapter/adapter_model.safetensors runs/far/adapter/adapter_model.safetensors

# merged: the head stays tied
check "a merge" "$G" merge --adapter runs/a --dtype fp32 --out merged
check "is the same model" near "$(loss --adapter runs/a)" "$(loss --model merged)"
check "with a tied head" holds merged/config.json '"tie_word_embeddings": true'
check "whose new rows stay known" holds merged/config.json '"graft_base_vocab_size": 600'
check "a GGUF" "$G" merge --adapter runs/a --dtype fp32 --out merged.gguf
check "is the same model too" near "$(loss --adapter runs/a)" "$(loss --model merged.gguf)"

# a LoRA and rows, from rows alone
lora=(adapter.method=lora adapter.trainable_tokens=new adapter.rank=2 adapter.dropout=0.1 adapter.init_from=runs/a)
check "LoRA and rows, from rows alone" train l "${lora[@]}" train.learning_rate=1e-2
check "it learns on" less "$(loss --adapter runs/l)" "$(loss --adapter runs/a)"
check "PEFT's form" holds runs/l/adapter/adapter_config.json '"trainable_token_indices": ['
check "generation" "$G" generate --adapter runs/l --prompt "1 + 1 = ?" --max-tokens 4
check "exported as PEFT has it" "$G" export --adapter runs/l --out peft
check "the same adapter" same peft/adapter_model.safetensors runs/l/adapter/adapter_model.safetensors
refused "no GGUF LoRA holds rows" 2 'with --base-out' "$G" export --adapter runs/l --out l.gguf
check "nor is it said to" bash -c '"$1" export --adapter runs/l --out l.gguf 2>l.err; [ "$(grep -c "are in it" l.err)" = 0 ]' - "$G"
check "a base with the rows and a plain LoRA" bash -c '"$@" 2>plain.err' - \
    "$G" export --adapter runs/l --base-out served --dtype fp32 --out plain
check "which has no rows in it" bash -c '[ "$(grep -c "are in it" plain.err)" = 0 ]'
check "are the same model" near "$(loss --adapter runs/l)" "$(loss --adapter plain)"
check "the LoRA is plain" lacks plain/adapter_config.json '600,'
check "as GGUF" "$G" export --adapter runs/l --base-out served.gguf --dtype fp32 --out plain.gguf
check "are the same model too" near "$(loss --adapter runs/l)" "$(loss --model served.gguf --adapter plain.gguf)"
refused "rows alone leave no LoRA" 2 'graft merge writes the model' "$G" export --adapter runs/a --base-out x --out y
refused "no scale" 2 'has no scale' "$G" eval --model base --adapter runs/l:0.5 --data d.jsonl
refused "not two" 2 'merge one first' "$G" eval --model base --adapter runs/l --adapter runs/a --data d.jsonl

# an untied head: its rows too, unless the recipe says otherwise
check "an untied head" train u model.base=untied
check "trains rows of both" holds u.out 'trainable parameters  3,840'
check "a merge of it" "$G" merge --adapter runs/u --dtype fp32 --out merged-untied
check "is the same model" near "$(loss --adapter runs/u)" "$(loss --model merged-untied)"
check "the embedding's alone" train e model.base=untied adapter.head_rows=false
check "half of them" holds e.out 'trainable parameters  1,920'

# all rows, tokens by text and id, a quantised base in either way
check "all rows" train all adapter.rows=all
check "are all" holds all.out 'trainable parameters  40,960'
check "learn more" less "$(loss --adapter runs/all)" "$(loss --adapter runs/a)"
check "tokens by text and id" train t 'adapter.rows=[<|im_end|>, " a", 100]'
check "are found" holds runs/t/recipe.yaml 'rows: ['
refused "no token" 2 'adapter.rows: "<|im_ned|>" is no token of base, it takes' \
    "$G" train rows.yaml output_dir=x 'adapter.rows=[<|im_ned|>]'
refused "the nearest one is named" 2 'did you mean "<|im_end|>"?' "$G" train rows.yaml output_dir=x 'adapter.rows=[<|im_ned|>]'
refused "no such id" 2 'rows 0 to 639 (a number is an id)' "$G" train rows.yaml output_dir=x 'adapter.rows=[640]'
refused "one token twice" 2 'are the same token, 2' "$G" train rows.yaml output_dir=x 'adapter.rows=[2, <|im_end|>]'
refused "never extended" 2 'extend it with graft vocab extend' "$G" train rows.yaml output_dir=x "model.base=$TINY"
refused "another base" 3 'expected 40 x 48 by the base model' "$G" eval --model untied --adapter runs/a --data d.jsonl
check "a Q8_0 base" "$G" merge --model base --dtype q8_0 --out q8.gguf
check "trains its rows" train q model.base=q8.gguf
check "and int8 products" train i model.compute=int8 --overwrite
check "and nf4 layers" train n model.quantize=nf4
check "a plan" "$G" plan rows.yaml
check "a shape alone: a dry run" "$G" train rows.yaml model.base=base/config.json --dry-run
finish
