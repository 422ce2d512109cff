#!/bin/bash
# kernels/cuda/resources.txt says of each kernel what a card has to give it, and the library agrees: registers beyond it are blocks
# fewer on a multiprocessor, which no other test here would notice. `tests/unit/test_resources.sh --renew` writes it anew.
SOURCE=${SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)} BUILD=${BUILD:-$(cd "$(dirname "$0")/../.." && pwd)/build/gcc}
table=$SOURCE/kernels/cuda/resources.txt
if [ ! -e "$BUILD/libgraft_cuda.so" ]; then
    echo "skip registers and shared memory of CUDA's kernels: needs a build with CUDA's toolkit"
    exit 77
fi
made() { # of each kernel one line: its name, the most threads of a block, registers and shared bytes on 8.0, and on 9.0
    local all
    all=$("$BUILD/tests/cubins" "$BUILD/libgraft_cuda.so") || return 1
    echo "# Of each kernel: threads of a block at most (0: as launched), then registers of a thread and bytes of static shared"
    echo "# memory of a block for sm_80, and for sm_90, where the system has 1,024 of these bytes."
    echo "# Made with CUDA's compiler of $(head -1 <<<"$all"), by tests/unit/test_resources.sh --renew."
    tail -n +2 <<<"$all" | c++filt | sed -E 's/^([0-9]+) (void )?(.*)\([^()]*\) ([0-9]+ [0-9]+ [0-9]+)$/\1|\3|\4/; s/, /,/g' |
        awk -F'|' '{split($3, n, " "); threads[$2] = n[1]; of[$2 " " $1] = n[2] " " n[3]}
            END {for (k in threads) print k, threads[k], of[k " " 80], of[k " " 90]}' | LC_ALL=C sort
}
if [ "${1:-}" = --renew ]; then
    made >"$table.new" && mv "$table.new" "$table"
    exit
fi
. "$(dirname "$0")/../lib.sh"
made >"$WORK/made.txt" || { not_ok "the library's kernels are read" "cubins failed"; finish; }
toolkit() { sed -nE "s/^# Made with CUDA's compiler of (.*), by .*/\1/p" "$1"; }
if [ "$(toolkit "$table")" != "$(toolkit "$WORK/made.txt")" ]; then
    skip "registers and shared memory of CUDA's kernels" "the table is of $(toolkit "$table"), here is $(toolkit "$WORK/made.txt")"
    finish
fi
diff "$table" "$WORK/made.txt" >"$WORK/diff"
none "registers and shared memory of CUDA's kernels" "not as in kernels/cuda/resources.txt (tests/unit/test_resources.sh --renew)" \
    "$WORK/diff"
finish
