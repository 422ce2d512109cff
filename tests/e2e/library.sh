#!/bin/bash
# The library through its public header alone: library.c prints its cases itself.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
"$BUILD/tests/library" "$TINY" "$TINY/train.jsonl" "$WORK/run" >cases.log 2>err.log
code=$?
cat cases.log
n_failed=$(grep -c '^not ok ' cases.log)
if [ $code -gt 1 ] || ! grep -q '^ok the version' cases.log; then not_ok "the library's program" "it ended with $code" err.log; fi
finish
