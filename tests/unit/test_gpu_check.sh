#!/bin/bash
# tests/gpu-check, as far as the emulator goes: its pack is unpacked elsewhere, and runs there on small sizes with nothing of this
# folder's environment. Needs the CUDA backend and the emulator, which lies outside the project.
. "$(dirname "$0")/../lib.sh"
needs_emulator "tests/gpu-check"
cd "$WORK" || exit 1
check "it is packed" env BUILD="$BUILD" "$SOURCE/tests/gpu-check" pack "$WORK/pack.tar.gz"
check "and unpacked" tar xzf pack.tar.gz
env -u SHELLOPTS LD_LIBRARY_PATH="$WORK/gpu-check/lib" ldd gpu-check/build/graft >libraries
check "it needs libraries" grep -q "libyaml.*$WORK/gpu-check/lib" libraries
grep '=> /' libraries | grep -vE "$WORK/|/lib(c|m|dl|pthread|rt|util|resolv)\.so" >wrong
none "all libraries but glibc's are in it" "from elsewhere" wrong
for f in $(sed -n '/^parts=(/,/)$/p' "$SOURCE/tests/unit/test_cuda.sh" | grep -oE 'test_[a-z_]+' | sort -u); do
    check "$f, which runs on a card, is in it" test -x "gpu-check/build/tests/$f"
done
# On the CPU, which shows that the files which they read are there.
for f in gpu-check/build/tests/test_*; do
    case $f in */test_ops | */test_bits | */test_model | */test_card) continue ;; esac # they take long, or need a card
    check "packed $(basename "$f") has its files" env -i PATH="$PATH" HOME="$WORK" LD_LIBRARY_PATH="$WORK/gpu-check/lib" \
        bash -c "cd gpu-check && build/tests/$(basename "$f")"
done
env -i PATH="$PATH" HOME="$WORK" CUDAEMU_CACHE="$CUDAEMU_CACHE" CUDAEMU_THREADS=1 \
    gpu-check/tests/gpu-check run --small --limit 900 --emulator "$emulator" --only doctor speed kernels --out out >run.log 2>&1
code=$?
if [ $code = 0 ]; then ok "it runs there"; else not_ok "it runs there" "code $code" run.log; fi
# What needs neither a peer nor nvidia-smi is measured.
for key in lora7b real7b smol1k smol16k long7b full7b gen7b_1 gen7b_8 gen7b_nf4_1 gen7b_nf4_8 copy; do
    check "$key is measured" awk -F '\t' -v k=$key '$1 == k && $2 > 0 {found = 1} END {exit !found}' out/measured.tsv
done
check "every operation has a line" test "$(grep -c '^small .* us .* GB/s' out/kernels.txt)" -ge 60
check "one sequence is beside the packs in the table" grep -E '^one sequence of 4,096 +[0-9]+ .* (met|NOT MET)' run.log
check "all of it is JSON" grep -q '"checks": \[' out/gpu-check.json

refused "an unknown part is refused" 2 "no such part" gpu-check/tests/gpu-check run --only speeds
finish
