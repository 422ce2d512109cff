#!/bin/bash
# cmake --install: what lies where, and the example built against the installed library.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
check "cmake --install" cmake --install "$BUILD" --prefix "$WORK/usr"
for f in bin/graft include/graft.h include/graft_status.h share/man/man1/graft.1 share/bash-completion/completions/graft; do
    check "installs $f" test -s "usr/$f"
done
lib=$(dirname "$(find usr -name 'libgraft.a')")
for f in libgraft.a libgraft.so pkgconfig/graft.pc; do check "installs lib/$f" test -s "$lib/$f"; done
if [ "${GRAFT_SANITIZE:-0}" = 1 ]; then
    skip "the example" "its program would need the sanitizers"
    finish
fi
export PKG_CONFIG_PATH=$WORK/$lib/pkgconfig LD_LIBRARY_PATH=$WORK/$lib
# The prefix in graft.pc is the configured one: this installation moved it.
# shellcheck disable=SC2046 # flags
check "the example compiles" cc -std=c11 -Wall -Wextra -Werror "$SOURCE/tests/e2e/example.c" \
    $(pkg-config --define-variable=prefix="$WORK/usr" --cflags --libs graft) -o example
check "the example trains and answers" ./example "$TINY" "$TINY/train.jsonl" run 'What is 3 + 4?' train.max_steps=4 \
    train.batch_size=4 data.cache=none model.dtype=fp32
check "the example reports an error" bash -c './example nowhere nothing.jsonl run2 x 2>&1 | grep -q nowhere'
check "the installed program runs" usr/bin/graft version
check "the man page formats" bash -c '! command -v man >/dev/null || man -l usr/share/man/man1/graft.1 | grep -q EXIT'
finish
