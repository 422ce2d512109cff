#!/bin/bash
# The levels avx512bf16 and amx as compiled, their instructions emulated one by one where the CPU lacks them: the tests of the
# model. Needs an AVX-512 CPU and the emulator, which lies outside the project.
emulator=$SOURCE/../shared/amxemu/run
if [ "$GRAFT_SANITIZE" = 1 ] || [ ! -x "$emulator" ] || ! grep -qw avx512bw /proc/cpuinfo; then
    echo "skip the model with emulated AMX: needs an AVX-512 CPU, a build without sanitizers and $emulator"
    exit 77
fi
cd "$SOURCE" || exit 1
status=0
for level in avx512bf16 amx; do
    if AMXEMU_STATS=1 GRAFT_CPU=$level "$emulator" -- "$BUILD/tests/test_model" >"$BUILD/emulated-$level.log" 2>&1 &&
        { [ $level != amx ] || grep -qE 'TDPBF16PS [1-9]' "$BUILD/emulated-$level.log" || grep -qw amx_bf16 /proc/cpuinfo; }; then
        echo "ok the model at level $level"
    else
        echo "not ok the model at level $level: $BUILD/emulated-$level.log"
        status=1
    fi
done
exit $status
