#!/bin/bash
# The text of the project: C as .clang-format says, and lines of at most 132 columns (rows of tables in Markdown and golden data apart).
. "$(dirname "$0")/../lib.sh"
cd "$SOURCE" || exit 1
if ! git rev-parse --git-dir >/dev/null 2>&1; then
    skip "C is formatted as .clang-format says" "no repository here"
elif ! clang-format --version 2>/dev/null | grep -F 'version 14.' >/dev/null; then
    skip "C is formatted as .clang-format says" "clang-format 14 is not here, and other versions differ"
else
    git ls-files '*.c' '*.h' | xargs clang-format --dry-run 2>&1 | grep 'code should be clang-formatted' >"$WORK/wrong"
    if [ -s "$WORK/wrong" ]; then not_ok "C is formatted as .clang-format says" "clang-format -i" "$WORK/wrong"; else ok "C is formatted as .clang-format says"; fi
fi
git ls-files '*.c' '*.h' | LC_ALL=C.UTF-8 xargs grep -nE '^.{133,}' >"$WORK/wrong"
if [ -s "$WORK/wrong" ]; then not_ok "no line has more than 132 columns" "see" "$WORK/wrong"; else ok "no line has more than 132 columns"; fi
finish
