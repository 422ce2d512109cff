#!/bin/bash
# Faults planted in the CUDA backend, one at a time in a copy of the source: a test must fail with each, and passes without. What no
# test notices is not tested. By default those of barriers, copies and streams that need an emulator to be seen; `all`: of
# arithmetic, masks, edges and sums too (part of tests/unit/cuda_sweep.sh); words: those whose names hold one of them.
# Needs the CUDA backend, its compiler and the emulator, which lies outside the project.
. "$(dirname "$0")/../lib.sh"
needs_emulator "faults planted in CUDA's kernels"
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
[ -n "$nvcc" ] || { echo "skip faults planted in CUDA's kernels: there is no nvcc"; exit 77; }
cd "$WORK" || exit 1
export GRAFT_DEVICE=cuda emulator nvcc WORK SOURCE BUILD

# Two lines each: name | file, and the .cu that includes it if it is a header | operations of test_ops, or a test | options of the
# emulator; then sed's command.
list() {
    cat <<'L'
a missing barrier|loss.cu|cross_entropy|--check
    /tops\[threadIdx.x \/ 32\] = top/{n;d}
a wait for one copy too few|gemv.cu|few rows|--cp lazy
    s/gr_copies_wait<P::slots - 2>/gr_copies_wait<P::slots - 1>/
a download that waits for no stream|device.c|loss_sum|--delay 2000
    /cudaStreamWaitEvent(c->down_stream/d
pinned memory that is written while it is read|device.c|test_queues|--delay 2000
    s/if (!gr_cuda_await(d, NULL, c->upload.*/;/; s/n > GR_CUDA_RING/n > 4 << 10/
a batch that is written while it is read|device.c|test_queues|--delay 2000
    /cuda_wait(d, GR_QUEUE_COPY, after);/d
work that does not wait for its batch|device.c|test_queues|--delay 2000
    s/^    if (mark > 0 \(.*c->stream.queue\)/    if (queue != GR_QUEUE_COMPUTE \&\& mark > 0 \1/
L
    [ $# = 0 ] || cat "$SOURCE/tests/fault/cuda_planted.txt"
}

flags=(-O3 -lineinfo -std=c++17 "-I$WORK/in" "-I$SOURCE" -D_GNU_SOURCE -Xcompiler=-fPIC,-fvisibility=hidden
    --generate-code=arch=compute_90,code=compute_90)
# build DIR FILE[,CU] SED: DIR/libgraft_cuda.so with the file edited; the PTX alone, which is all that the emulator reads.
build() {
    local dir=$1 file=${2%%,*} source=${2##*,} object objects=() abi
    mkdir -p "$dir/kernels/cuda"
    sed "$3" "$SOURCE/kernels/cuda/$file" >"$dir/kernels/cuda/$file"
    if cmp -s "$dir/kernels/cuda/$file" "$SOURCE/kernels/cuda/$file"; then echo "sed changed nothing" && return 1; fi
    [ -e "$dir/kernels/cuda/$source" ] || cp "$SOURCE/kernels/cuda/$source" "$dir/kernels/cuda/"
    case $source in
    *.cu) "$nvcc" "${flags[@]/$WORK\/in/$dir}" -c "$dir/kernels/cuda/$source" -o "$dir/planted.o" || return 1 ;;
    *.c)
        abi=$(strings -n 64 "$BUILD/libgraft_cuda.so" | grep -xE '[0-9a-f]{64}') || return 1
        ${CC:-cc} -O2 -fPIC -fvisibility=hidden "-DGR_ABI=\"$abi\"" -D_GNU_SOURCE "-I$dir" "-I$SOURCE" \
            -isystem "$(dirname "$nvcc")/../include" -c "$dir/kernels/cuda/$source" -o "$dir/planted.o" || return 1
        ;;
    esac
    for object in "$SOURCE"/kernels/cuda/*.c "$SOURCE"/kernels/cuda/*.cu "$SOURCE"/kernels/dtype.c "$SOURCE"/kernels/quantize.c; do
        object=${object#"$SOURCE/"}
        [ "$object" = "kernels/cuda/$source" ] || objects+=("$BUILD/CMakeFiles/graft_cuda.dir/$object.o")
    done
    g++ -shared -o "$dir/libgraft_cuda.so" "$dir/planted.o" "${objects[@]}"
}
# one NUMBER HEAD SED: plants a fault and says in NUMBER/said what came of it; where `without` is set, the test passes without it.
one() {
    local dir=$WORK/$1 edit=$3 name file ops options
    IFS='|' read -r name file ops options <<<"$2"
    mkdir -p "$dir"
    local program=test_ops
    case $ops in test_*) program=$ops ops= ;; esac
    test_with() { # test_with LIBRARY LOG
        GRAFT_OPS=$ops GRAFT_CUDA_LIB=$1 env -u SHELLOPTS timeout 1800 "$emulator" $options -- "$BUILD/tests/$program" >"$2" 2>&1
    }
    if ! build "$dir" "$file" "$edit" >"$dir/log" 2>&1; then
        echo "not ok $name|it was not planted" >"$dir/said"
    elif test_with "$dir/libgraft_cuda.so" "$dir/log"; then
        echo "not ok $name|no test noticed" >"$dir/said"
    elif ! grep -qE '^\[  FAILED|cudaemu: ERROR' "$dir/log"; then
        echo "not ok $name|the test ended or was out of time, but found nothing" >"$dir/said"
    elif [ -n "$without" ] && ! test_with "$BUILD/libgraft_cuda.so" "$dir/log"; then
        echo "not ok $name|the test fails without it, too" >"$dir/said"
    else
        echo "ok $name is caught" >"$dir/said"
    fi
    rm -rf "$dir/libgraft_cuda.so" "$dir/planted.o"
    [ -z "${PROGRESS:-}" ] || cat "$dir/said" >&2
}
export -f build one list
export without=1
[ $# = 0 ] || without= # of all of them the tests run without a fault elsewhere
words=$*
[ "$words" != all ] || words=
n=0
list "$@" | while IFS= read -r head && IFS= read -r edit; do
    [[ "$head" =~ ${words// /|} ]] && printf '%s\0%s\0%s\0' $((n += 1)) "$head" "${edit#    }"
done >list.bin
[ -s list.bin ] || not_ok "faults are planted" "none has such a name"
xargs -0 -r -n 3 -P "$(nproc)" bash -c "$(declare -p flags); "'one "$1" "$2" "$3"' _ <list.bin
for dir in $(ls -d [0-9]* 2>/dev/null | sort -n); do
    said=$(cat "$dir/said" 2>/dev/null || echo "not ok planted fault $dir|it ended without a word")
    case $said in ok*) echo "$said" ;; *) not_ok "$(cut -d'|' -f1 <<<"${said#not ok }")" "${said#*|}" "$dir/log" ;; esac
done
finish
