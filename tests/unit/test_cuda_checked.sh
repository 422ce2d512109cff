#!/bin/bash
# Parts of the CUDA backend's sweep (cuda_sweep.sh) that find most for their time: checked, in other orders, on a card of 8.0.
. "$(dirname "$0")/../lib.sh"
needs_emulator "the CUDA backend, checked"
parts='test_ops (others|cached_attention|fp8) checked|test_(decoder|rows|merge|finite_diff) checked|'
parts+='test_ops others backwards|test_ops linear_backward 8.0|fault/bad_input on cuda'
env -u SHELLOPTS "$SOURCE/tests/unit/cuda_sweep.sh" --out "$WORK/sweep" "^($parts)\$" >"$WORK/said.txt" 2>&1
while read -r said _ _ name; do
    log=$WORK/sweep/${name//[^A-Za-z0-9_.-]/_}.log
    if [ "$said" = ok ]; then ok "$name"; else not_ok "$name" "see" "$log"; fi
done < <(grep -E '^(ok|NOT) +[0-9]+ s ' "$WORK/said.txt" | sed -E 's/ +[0-9]+ of [0-9]+, after .*//')
check "all of these parts were run" grep -qE ' 0 not run; 10 were to do' "$WORK/said.txt"
finish
