#!/bin/bash
# Includes only go downwards: kernels < core (base < dist < io < text < data < model) < adapters < peft < peft/cli.
. "$(dirname "$0")/../lib.sh"
cd "$SOURCE" || exit 1
height() {
    case $1 in
    kernels/*) echo 20 ;; # core/base knows nothing of kernels; core/io may use them
    core/base/*) echo 10 ;;
    core/dist/*) echo 25 ;;
    core/io/*) echo 30 ;;
    core/text/*) echo 40 ;;
    core/data/*) echo 50 ;;
    core/model/*) echo 60 ;;
    adapters/*) echo 70 ;;
    peft/cli/*) echo 90 ;;
    peft/*) echo 80 ;;
    *) echo 0 ;;
    esac
}
grep -rnoE '^#include "[^"]+"' --include='*.[ch]' --include='*.cu' --include='*.cuh' --include='*.def' kernels core adapters peft |
    sed -E 's/^([^:]+):([0-9]+):#include "([^"]+)"/\1 \2 \3/' >"$WORK/includes"
while read -r file line included; do
    from=$(height "$file") to=$(height "$included")
    if [ "$to" = 0 ]; then echo "$file:$line includes \"$included\": write its path from the root of the repository"
    elif [ "$to" -gt "$from" ]; then echo "$file:$line includes $included of a higher layer"
    elif [ "$from" = 20 ] && [ "$to" != 20 ]; then echo "$file:$line: kernels/ may include kernels/ alone"
    fi
done <"$WORK/includes" >"$WORK/wrong"
check "includes are found" test "$(wc -l <"$WORK/includes")" -gt 100
none "includes only go downwards" "see" "$WORK/wrong"

# Within peft/ as well: a file's functions call those of files below it, so that no two files call each other, on whatever way.
grep -oE '^[a-z][a-z0-9_ *]*\bgr[a-z]*_[a-z0-9_]+\(' peft/*.c | grep -v ':static ' |
    sed -E 's/^([^:]+):.*\b(gr[a-z]*_[a-z0-9_]+)\($/\2 \1/' | sort >"$WORK/defined"
grep -oE '\bgr[a-z]*_[a-z0-9_]+\b' peft/*.c | sed -E 's/^([^:]+):(.*)$/\2 \1/' | sort -u >"$WORK/used"
join "$WORK/used" "$WORK/defined" | cut -d ' ' -f 2,3 >"$WORK/calls"
check "calls are found" grep -qx 'peft/trainer.c peft/loop.c' "$WORK/calls"
tsort "$WORK/calls" >/dev/null 2>"$WORK/wrong"
if [ -s "$WORK/wrong" ]; then not_ok "no file of peft/ calls back" "see" "$WORK/wrong"; else ok "no file of peft/ calls back"; fi

grep -rnE '\b(exit|_exit|abort|printf|puts|putchar)\(' --include='*.c' kernels core adapters peft |
    grep -vE '^peft/cli/|^(core/base/base|kernels/far)\.c:[0-9]+:.*abort\(' >"$WORK/wrong"
none "the library neither exits nor prints" "see" "$WORK/wrong"
finish
