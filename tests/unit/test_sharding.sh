#!/bin/bash
# What ranks keep shares of (train.sharding): they train what one rank trains, all ways with the same bits, and send what theory
# says.
. "$(dirname "$0")/../lib.sh"
needs_ranks "sharding"
ranks() { # ranks N SETTING... : of a run
    local n=$1
    shift
    env -u SHELLOPTS timeout 120 mpirun -n "$n" "$GRAFT" train r.yaml "$@" >said.txt 2> >(tee err.txt >&2)
}
cd "$WORK" || exit 1
cat >r.yaml <<Y
model: {base: $TINY, dtype: fp32}
adapter: {method: full}
data: {train: t.jsonl, eval: e.jsonl, max_length: 128, cache: none}
train: {max_steps: 30, batch_size: 16, learning_rate: 3.0e-4}
eval: {every: 30}
log: {every: 1}
output_dir: run
Y
counting 150 t.jsonl
head -n 20 t.jsonl >e.jsonl
losses() { jq -c '[.step, .loss // .eval_loss, .num_tokens]' "$1/metrics.jsonl"; }
close() { # close RUN RUN: the same rows, losses within the rounding of sums
    jq -n --slurpfile a <(losses "$1") --slurpfile b <(losses "$2") '($a | length) >= 31 and ($b | length) == ($a | length) and
        all(range($a | length); $a[.][0] == $b[.][0] and $a[.][2] == $b[.][2] and ($a[.][1] - $b[.][1] | fabs) < 1e-5)' |
        grep -x true
}
sent() { sed -n 's/.*each of 8 has sent \([0-9]*\) bytes.*/\1/p' err.txt; }
# about BYTES: within 1 % of what was sent
about() { test $(($(sent) * 100)) -gt $(($1 * 99)) && test $(($(sent) * 100)) -lt $(($1 * 101)); }

# try NAME BYTES BYTES SETTING...: one rank, and eight in all ways. BYTES of a step of zero1 and zero2, and of zero3: of all
# gradients and of weights as often as they are sent, of which a rank has 7/8 sent to it; 0: not told.
try() {
    local name=$1 bytes=$2 bytes3=$3
    shift 3
    "$GRAFT" train r.yaml output_dir="$name" threads=1 "$@" >/dev/null 2>err.txt
    for way in zero1 zero2 zero3; do
        ranks 8 output_dir="$name-$way" train.sharding=$way "$@"
        [ $way != zero3 ] || bytes=$bytes3
        [ "$bytes" = 0 ] || check "$name: $way sends what theory says" about $((bytes * 7 / 8))
    done
    check "$name: eight ranks train what one does" close "$name" "$name-zero1"
    check "$name: zero2 has the bits of zero1" same "$name"-zero[12]/model/model.safetensors
    check "$name: zero3 has them too" same "$name"-zero[13]/model/model.safetensors
    check "$name: and the same losses" diff <(losses "$name-zero1") <(losses "$name-zero3")
}
# Weights of a layer; zero3: all but the last come once more for the backward.
layer=$((2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64))
params=$((640 * 64 + 2 * layer + 64))
try tied $((params * (4 + 4))) $((params * (4 + 4) + layer * 4))
try bf16 $((params * (4 + 2))) $((params * (4 + 2) + layer * 2)) train.weights=bf16
try split 0 0 eval.every=10 train.micro_batch_tokens=128 train.weights=bf16
layer=$((2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32)) # another model, of three layers
params=$((2 * 640 * 32 + 3 * layer + 32))
try untied $((params * (4 + 4))) $((params * (4 + 4) + 2 * layer * 4)) model.base="$SOURCE/tests/golden/tiny-phi3"
try stochastic 0 0 model.base="$SOURCE/tests/golden/tiny-phi3" train.micro_batch_tokens=128 train.weights=bf16_stochastic
ranks 8 output_dir=again eval.every=10 train.sharding=zero2 train.micro_batch_tokens=128 train.weights=bf16
check "again: the same bits" same again/model/model.safetensors split-zero2/model/model.safetensors

ranks 2 output_dir=near train.sharding=zero1 train.micro_batch_tokens=128 train.max_steps=4
GRAFT_DEVICE=far ranks 2 output_dir=far train.sharding=zero3 train.micro_batch_tokens=128 train.max_steps=4
check "in memory of its own: the same bits" same near/model/model.safetensors far/model/model.safetensors

# ---- a frozen base ----
# base NAME BYTES SETTING...: the bits of a base that every rank has; BYTES of it a step, of which a rank sends 7/8; 0: not told
base() {
    local name=$1 bytes=$2
    shift 2
    for way in none zero3; do
        ranks 8 output_dir="$name-$way" train.sharding=$way adapter.method=lora adapter.rank=4 train.learning_rate=3.0e-3 "$@"
    done
    adapter=$(sed -n 's/^trainable parameters *//p' said.txt | tr -d ,) # whose gradients go and come back
    [ "$bytes" = 0 ] || check "$name: the base takes as many bytes as theory says" about $(((bytes + 8 * adapter) * 7 / 8))
    check "$name: a shared base trains the same adapter" same "$name"-{none,zero3}/adapter/adapter_model.safetensors
    check "$name: with the same losses" diff <(losses "$name-none") <(losses "$name-zero3")
}
# Embedding, head and the layers but the first come for the forward, all but the last for the backward.
base lora $((4 * (2 * 640 * 32 + 4 * (layer - 2 * 32)))) model.base="$SOURCE/tests/golden/tiny-phi3"
base quantised 0 model.base="$SOURCE/tests/golden/tiny-phi3" model.quantize=q8_0 train.micro_batch_tokens=128 eval.every=10
base rows 0 model.base="$SOURCE/tests/golden/tiny-gemma3" adapter.target_modules=[v_proj,embed_tokens]

# ---- stopped and resumed, also by another number of ranks ----
ranks 8 output_dir=stopped train.sharding=zero2 train.weights=bf16 save.every=10
rm -r stopped/checkpoint-[23]0 stopped/model
cp -r stopped fewer
ranks 8 output_dir=stopped train.sharding=zero2 train.weights=bf16 save.every=10 --resume
check "resumed: the bits of the run that was not stopped" same stopped/model/model.safetensors bf16-zero2/model/model.safetensors
ranks 4 output_dir=fewer train.sharding=zero1 train.weights=bf16 save.every=10 --resume
check "resumed by four: what one rank trains" close bf16 fewer

ranks 4 output_dir=whole train.sharding=zero3 train.weights=bf16 save.every=20
rm -r whole/checkpoint-30 whole/model
ranks 4 output_dir=whole train.sharding=zero3 train.weights=bf16 save.every=20 --resume
check "zero3, resumed: what one rank trains" close bf16 whole

# ---- what does not go ----
check "one rank alone" "$GRAFT" train r.yaml output_dir=alone train.max_steps=1 train.sharding=zero2
check "says that it keeps all" grep -q 'train.sharding zero2 is of several ranks (mpirun): one alone keeps all' alone/run.log
refused "adapters have no states to share" 2 "zero1 and zero2 are of adapter.method full" \
    ranks 2 output_dir=no train.sharding=zero2 adapter.method=lora
refused "and validate says so" 2 "zero1 and zero2 are of adapter.method full" \
    "$GRAFT" validate r.yaml train.sharding=zero2 adapter.method=lora
refused "int8 is made of whole weights" 2 "does not go with model.compute int8" \
    ranks 2 output_dir=no train.sharding=zero3 adapter.method=lora model.compute=int8
refused "adamw_8bit needs whole tensors" 2 "train.sharding: is of train.optimizer adamw" \
    ranks 2 output_dir=no train.sharding=zero2 train.optimizer=adamw_8bit
refused "a step that is not finite stops all ranks" 1 "is not finite; nothing was updated" \
    ranks 4 output_dir=no train.sharding=zero2 train.learning_rate=1e20
finish
