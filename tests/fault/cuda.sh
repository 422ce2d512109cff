#!/bin/bash
# Calls of CUDA's libraries that fail, one a run: one clear error, no half-written result, no hang. Needs the CUDA backend and the
# emulator, which lies outside the project.
. "$(dirname "$0")/../lib.sh"
needs_emulator "faults of CUDA"
cd "$WORK" || exit 1
cat >tiny.yaml <<Y
model: {base: $TINY, dtype: bf16}
adapter: {rank: 4, alpha: 8}
data: {train: $TINY/train.jsonl, cache: none}
train: {max_steps: 3, batch_size: 4}
save: {every: 1}
log: {every: 1}
device: cuda
output_dir: run
Y
# fails NAME CALL: the run ends with an error in one line and without a result, or (fewer calls are made) well.
fails() {
    rm -rf run
    env -u SHELLOPTS timeout 120 "$emulator" --on-fault error --fail "$2" -- "$GRAFT" train tiny.yaml >fault.log 2>&1
    local code=$?
    if [ $code = 0 ] && [ -s run/adapter/adapter_model.safetensors ]; then return 0; fi
    if [ $code -ge 1 ] && [ $code -le 3 ] && [ "$(grep -c '^graft: error: ' fault.log)" = 1 ] && [ ! -e run/adapter ] &&
        ! find run -name '*.tmp*' 2>/dev/null | grep . >fault.tmp; then
        n_refused=$((n_refused + 1))
        return 0
    fi
    not_ok "$1" "exit code $code" fault.log
    return 1
}
for call in cudaMalloc cudaMemcpyAsync cudaMemsetAsync cudaHostAlloc cudaEventRecord cudaEventSynchronize cudaStreamSynchronize \
    cublasLtCreate cublasLtMatmul cublasLtMatmulAlgoGetHeuristic kernel; do
    n_refused=0 good=1
    for n in 1 2 7 23 80 300; do fails "$call, call $n fails" "$call:$n" || good=0; done
    [ $n_refused -gt 0 ] || not_ok "$call fails" "no run noticed" fault.log
    [ $good = 0 ] || [ $n_refused = 0 ] || ok "$call fails: $n_refused runs end with one error and no result"
done

# What was saved before the failure is whole: the run goes on from there to the same bits.
run() { env -u SHELLOPTS "$emulator" "$@"; }
rm -rf run
check "the run without a failure" run -- "$GRAFT" train tiny.yaml output_dir=good
refused "one that fails in its third step" 1 "graft: error: " run --on-fault error --fail kernel:250 -- "$GRAFT" train tiny.yaml
check "it has a checkpoint" test -d run/checkpoint-1
check "and is resumed" run -- "$GRAFT" train tiny.yaml --resume
check "to the same bits" same good/adapter/adapter_model.safetensors run/adapter/adapter_model.safetensors
finish
