#!/bin/bash
# Nothing is declared that nobody calls: each gr_ function of a header is named somewhere besides its declaration and its
# definition, in the product or in a test. (Kernels are named by macros, and are tested through their tables.)
. "$(dirname "$0")/../lib.sh"
cd "$SOURCE" || exit 1
grep -rhE '\bgr_[a-z0-9_]+\(' --include='*.h' core adapters peft |
    grep -v '^static' | grep -oE '\bgr_[a-z0-9_]+\(' | tr -d '(' | sort -u >"$WORK/declared"
# Words outside of comments that begin a line; a name has one in its header and one where it is defined.
grep -rhvE '^ *(/\*|\*)' --include='*.[ch]' --include='*.def' core adapters peft kernels tests |
    grep -oE '\bgr_[a-z0-9_]+' | sort | uniq -c |
    awk '$1 <= 2 {print $2}' >"$WORK/rare"
comm -12 "$WORK/declared" <(sort "$WORK/rare") >"$WORK/dead"
none "every function is called by somebody" "nobody calls" "$WORK/dead"
finish
