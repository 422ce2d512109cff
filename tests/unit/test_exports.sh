#!/bin/bash
# The shared library shows the functions of graft.h and graft_status.h, all of them and nothing else.
. "$(dirname "$0")/../lib.sh"
nm -D --defined-only "$BUILD/libgraft.so" | awk '$2 !~ /[AN]/ {print $3}' | sort >"$WORK/exported"
grep -hE '^GRAFT_API' "$SOURCE/peft/graft.h" "$SOURCE/core/base/graft_status.h" |
    grep -oE '\bgraft_[a-z_]+\(' | tr -d '(' | sort -u >"$WORK/declared"
if [ "${GRAFT_SANITIZE:-0}" = 1 ]; then # the sanitizers' own symbols are exported as well
    grep '^graft_' "$WORK/exported" >"$WORK/own"
    mv "$WORK/own" "$WORK/exported"
fi
check "its headers declare functions" grep -qx graft_train "$WORK/declared"
check "the library exports what its headers declare" diff "$WORK/declared" "$WORK/exported"
finish
