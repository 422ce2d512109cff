#!/bin/bash
# No function, and no pointer to one, has more than 9 parameters: more of them are a struct. kernels/cpu/ may have its own ways.
. "$(dirname "$0")/../lib.sh"
cd "$SOURCE" || exit 1
# "FILE NAME N" of each declaration, definition, function pointer and row of ops.def.
parameters() {
    awk '
    /^[a-z][^;=]*\(/ || /\(\*[a-z_]+\)\(/ || /^GR_OP\(/ { text = ""; open = 1 }
    open {
        text = text " " $0
        if ($0 !~ /[;{)]$/ && $0 !~ /;.*\*\/$/) next
        open = 0
        if (text ~ /^ GR_OP/) sub(/, */, "", text) && sub(/^ GR_OP\(/, "", text)
        else if (match(text, /\(\*[a-z_]+\)\(/)) text = substr(text, RSTART + 2)
        name = text
        sub(/\).*/, "", name); sub(/\(.*/, "", name); sub(/.*[ *]/, "", name)
        text = substr(text, index(text, "("))
        if (text ~ /^\([^()]*\)\(/ || text ~ /^\)/) next
        depth = n = 0
        for (i = 1; i <= length(text); i++) {
            c = substr(text, i, 1)
            if (c == "(") depth++
            else if (c == ")" && --depth == 0) break
            else if (c == "," && depth == 1) n++
        }
        print FILENAME, name, n + 1
    }' "$@"
}
parameters kernels/*.h kernels/ops.def core/*/*.[ch] adapters/*.[ch] peft/*.[ch] peft/cli/*.[ch] >"$WORK/all"
check "functions are found" test "$(grep -cE ' gr_[a-z0-9_]+ [1-9]$' "$WORK/all")" -gt 500
awk '$3 > 9' "$WORK/all" >"$WORK/wrong"
check "none has more than 9 parameters" bash -c '! cat "$0" | grep .' "$WORK/wrong"
finish
