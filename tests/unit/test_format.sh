#!/bin/bash
# The text of the project: C as .clang-format says, and lines of at most 132 columns. Rows of tables in Markdown, chat templates,
# the licence and golden data (not its scripts) are as long as they are.
. "$(dirname "$0")/../lib.sh"
cd "$SOURCE" || exit 1
if ! git rev-parse --git-dir >/dev/null 2>&1; then
    skip "C is formatted as .clang-format says" "no repository here"
    skip "no line has more than 132 columns" "no repository here"
    finish
fi
if clang-format --version 2>/dev/null | grep -F 'version 14.' >/dev/null; then
    git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format --dry-run 2>&1 |
        grep 'code should be clang-formatted' >"$WORK/wrong"
    none "C is formatted as .clang-format says" "clang-format -i" "$WORK/wrong"
else
    skip "C is formatted as .clang-format says" "clang-format 14 is not here, and other versions differ"
fi
git ls-files | grep -vE '\.jinja$|^LICENSE$|^tests/golden/(.*/|.*\.json$)' >"$WORK/files"
check "files are found" test "$(wc -l <"$WORK/files")" -gt 300
tr '\n' '\0' <"$WORK/files" | LC_ALL=C.UTF-8 xargs -0 grep -nHE '^.{133,}' | grep -vE '^[^:]*\.md:[0-9]+: *\|' >"$WORK/wrong"
none "no line has more than 132 columns" "see" "$WORK/wrong"
finish
