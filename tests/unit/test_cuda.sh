#!/bin/bash
# The CUDA backend as compiled, on the CPU: the tests of the kernels and of the model, then a training run. Needs the library
# (CUDA's toolkit) and the emulator, which lies outside the project.
emulator=$SOURCE/../shared/cudaemu/run
if [ ! -x "$emulator" ] || [ ! -e "$BUILD/libgraft_cuda.so" ]; then
    echo "skip the CUDA backend: needs a build with CUDA's toolkit and $emulator"
    exit 77
fi
. "$(dirname "$0")/../lib.sh"
export GRAFT_CUDA_LIB=$BUILD/libgraft_cuda.so GRAFT_DEVICE=cuda CUDAEMU_CACHE=${CUDAEMU_CACHE:-$BUILD/cudaemu} CUDAEMU_THREADS=1
for name in test_ops test_decoder test_model test_training test_merge test_adapters test_adapter_files test_params test_rows; do
    log=$BUILD/cuda-$name.log
    if "$emulator" -- "$BUILD/tests/$name" >"$log" 2>&1; then ok "$name on cuda"; else not_ok "$name on cuda" "see $log" "$log"; fi
done
finish
