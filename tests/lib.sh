# lib.sh - what shell tests share. Sourced by tests/{unit,e2e,fault}/*.sh.
#
# BUILD is the build folder (default: build), SOURCE the repository. Each case ends in one line on stdout:
#   ok NAME | not ok NAME (and why, indented) | skip NAME (why)
# and the script's last call is `finish`.
set -uo pipefail
# Also in the shells that checks start: a command that fails counts, whatever reads its output. Hence no grep -q behind a pipe.
export SHELLOPTS
SOURCE=${SOURCE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
BUILD=$(cd "${BUILD:-$SOURCE/build}" && pwd)
GRAFT=$BUILD/graft
TINY=$SOURCE/tests/golden/tiny
WORK=$(mktemp -d "${TMPDIR:-/tmp}/graft-test-XXXXXX")
trap 'rm -rf "$WORK"' EXIT
[ -x "$GRAFT" ] || { echo "not ok $(basename "$0"): $GRAFT is not built"; exit 1; }
emulator=${GRAFT_EMULATOR:-$SOURCE/../shared/cudaemu/run} # of cards; it lies outside the project
# needs_emulator WHAT: it is there, and the CUDA backend was built; else the script ends, skipped.
needs_emulator() {
    if [ ! -x "$emulator" ] || [ ! -e "$BUILD/libgraft_cuda.so" ]; then
        echo "skip $1: needs a build with CUDA's toolkit and $emulator"
        exit 77
    fi
    export GRAFT_CUDA_LIB=$BUILD/libgraft_cuda.so CUDAEMU_CACHE=${CUDAEMU_CACHE:-$BUILD/cudaemu} CUDAEMU_THREADS=1
}
emulated() { env -u SHELLOPTS "$emulator" -- "$@"; } # which never sees SHELLOPTS
# Is mpirun there, and was it built for? Ranks share the cores then, as root too.
has_ranks() {
    [ -e "$BUILD/libgraft_mpi.so" ] && command -v mpirun >/dev/null || return 1
    export GRAFT_MPI_LIB=$BUILD/libgraft_mpi.so OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
    export ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0 # MPI's own
}
# needs_ranks WHAT: else the script ends, skipped.
needs_ranks() {
    has_ranks && return
    echo "skip $1: needs a build with MPI, and mpirun (Debian: libopenmpi-dev, openmpi-bin)"
    exit 77
}
# counting N FILE: so many samples of many lengths.
counting() {
    local i
    for i in $(seq 1 "$1"); do
        printf '{"prompt": "count %d: %s", "completion": "%s"}\n' "$i" "$(yes ab | head -n $((i * 7 % 13 + 1)) | tr '\n' ' ')" \
            "$(yes cd | head -n $((i * 5 % 11 + 1)) | tr '\n' ' ')"
    done >"$2"
}
case ${GRAFT_DEVICE:-}${GRAFT_CARD:-} in
cuda*card) ;; # the card at hand
cuda*) # an emulated one
    needs_emulator "$(basename "$0" .sh) on cuda"
    printf '#!/bin/sh\nexec env -u SHELLOPTS "%s" -- "%s" "$@"\n' "$emulator" "$GRAFT" >"$WORK/graft"
    chmod +x "$WORK/graft"
    GRAFT=$WORK/graft
    ;;
esac
n_failed=0
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1:detect_leaks=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

ok() { echo "ok $1"; }
skip() { echo "skip $1 ($2)"; }
# not_ok NAME WHY [FILE ...]: the files' contents are shown.
not_ok() {
    echo "not ok $1"
    echo "    $2"
    shift 2
    for file; do [ -s "$file" ] && sed 's/^/    | /' "$file" | head -40; done
    n_failed=$((n_failed + 1))
}
# check NAME COMMAND ...: the command must succeed.
check() {
    local name=$1
    shift
    if "$@" >"$WORK/check.log" 2>&1; then ok "$name"; else not_ok "$name" "$* gave $?" "$WORK/check.log"; fi
}
# none NAME WHY FILE: the file holds nothing.
none() { if [ -s "$3" ]; then not_ok "$1" "$2" "$3"; else ok "$1"; fi; }
# same FILE FILE: both hold something, and the same.
same() { [ -s "$1" ] && [ -s "$2" ] && cmp "$1" "$2"; }
# differ FILE FILE: both hold something, and not the same.
differ() { [ -s "$1" ] && [ -s "$2" ] && ! cmp -s "$1" "$2"; }
# refused NAME CODE WORDS COMMAND ...: it fails with CODE and says WORDS.
refused() {
    local name=$1 code=$2 words=$3 found
    shift 3
    "$@" >"$WORK/refused.log" 2>&1 </dev/null
    found=$?
    if [ $found = "$code" ] && grep -qF -- "$words" "$WORK/refused.log"; then
        ok "$name"
    else
        not_ok "$name" "code $found, expected $code and: $words" "$WORK/refused.log"
    fi
}
# large_model DIR [FFN [LAYERS]]: the tiny model with 20 layers of so many feed-forward units (10,000: 156 MB), all zeros, so that
# the file has holes.
large_model() {
    local header="" at=0 end line shape n ffn=${2:-10000} layers=${3:-20}
    mkdir "$1"
    cp "$TINY"/*.json "$TINY/chat_template.jinja" "$1"
    sed -i 's/"intermediate_size": 160/"intermediate_size": '"$ffn"'/; s/"num_hidden_layers": 2/"num_hidden_layers": '"$layers"'/' \
        "$1/config.json"
    while read -r line; do
        shape=${line##*[} n=1
        for size in ${shape//,/ }; do n=$((n * size)); done
        end=$((at + 4 * n))
        header+="${header:+,}$line],\"data_offsets\":[$at,$end]}"
        at=$end
    done < <(grep -aoE '"model[^"]*":\{"dtype":"F32","shape":\[[0-9,]+' "$TINY/model.safetensors" |
        sed -E 's/([[,])160/\1'"$ffn"'/' |
        awk -v n="$layers" '/layers.0/ {for (i = 0; i < n; i++) {l = $0; sub(/layers.0/, "layers." i, l); print l}} !/layers/')
    while [ $(((${#header} + 2) % 8)) != 0 ]; do header+=" "; done
    n=$((${#header} + 2))
    printf "$(printf '\\x%02x' $((n % 256)) $((n / 256 % 256)) $((n / 65536)) 0 0 0 0 0)" >"$1/model.safetensors"
    printf '{%s}' "$header" >>"$1/model.safetensors"
    truncate -s $((8 + ${#header} + 2 + at)) "$1/model.safetensors"
}
finish() { exit $((n_failed > 0)); }
