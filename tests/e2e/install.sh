#!/bin/bash
# cmake --install: what lies where, and the example built against the installed library by pkg-config and by find_package, after the
# whole was moved once more.
. "$(dirname "$0")/../lib.sh"
cd "$WORK" || exit 1
check "cmake --install" cmake --install "$BUILD" --prefix "$WORK/first"
mv first usr
for f in bin/graft include/graft.h share/man/man1/graft.1 share/bash-completion/completions/graft; do
    check "installs $f" test -s "usr/$f"
done
check "one header, which includes none of ours" \
    bash -c '[ "$(ls usr/include)" = graft.h ] && ! grep -q "^#include \"" usr/include/graft.h'
lib=$(dirname "$(find usr -name 'libgraft.a')")
for f in libgraft.a libgraft.so pkgconfig/graft.pc cmake/graft/graftConfig.cmake cmake/graft/graftConfigVersion.cmake; do
    check "installs lib/$f" test -s "$lib/$f"
done
check "no file names the place of the build or of the installation" \
    bash -c '! grep -rIlF -e "$1" -e "$2" usr' _ "$BUILD" "$WORK/first"
if [ "${GRAFT_SANITIZE:-0}" = 1 ]; then
    skip "the example" "its program would need the sanitizers"
    finish
fi
export PKG_CONFIG_PATH=$WORK/$lib/pkgconfig LD_LIBRARY_PATH=$WORK/$lib
# shellcheck disable=SC2046 # flags
check "the example compiles" cc -std=c11 -Wall -Wextra -Werror "$SOURCE/tests/e2e/example.c" \
    $(pkg-config --cflags --libs graft) -o example
check "the example trains and answers" ./example "$TINY" "$TINY/train.jsonl" run 'What is 3 + 4?' train.max_steps=4 \
    train.batch_size=4 data.cache=none model.dtype=fp32
check "the example reports an error" bash -c '! ./example nowhere nothing.jsonl run2 x 2>error.log && grep nowhere error.log'
# shellcheck disable=SC2046 # flags
check "the example links statically" cc -std=c11 "$SOURCE/tests/e2e/example.c" -I usr/include "$lib/libgraft.a" \
    $(pkg-config --static --libs graft | tr ' ' '\n' | grep -v -e '^-lgraft$') -o static-example
check "and runs without the shared library" env -u LD_LIBRARY_PATH ./static-example "$TINY" "$TINY/train.jsonl" \
    run3 'What is 3 + 4?' \
    train.max_steps=1 train.batch_size=4 data.cache=none model.dtype=fp32
mkdir project
cat >project/CMakeLists.txt <<C
cmake_minimum_required(VERSION 3.25)
project(example LANGUAGES C)
find_package(graft 0.1 REQUIRED)
add_executable(example $SOURCE/tests/e2e/example.c)
target_link_libraries(example PRIVATE graft::graft)
C
check "find_package(graft)" cmake -S project -B project/build -DCMAKE_PREFIX_PATH="$WORK/usr"
check "the example builds with it" cmake --build project/build
check "and runs" env -u LD_LIBRARY_PATH project/build/example "$TINY" "$TINY/train.jsonl" run4 'What is 3 + 4?' train.max_steps=1 \
    train.batch_size=4 data.cache=none model.dtype=fp32
sed -i 's/graft 0.1/graft 9.9/' project/CMakeLists.txt
check "another version is not found" \
    bash -c '! cmake -S project -B project/other -DCMAKE_PREFIX_PATH="$1/usr" 2>cmake.log && grep -F graft cmake.log' _ "$WORK"
if command -v c++ >/dev/null; then
    echo '#include <graft.h>' >header.cpp
    check "the header is C++ as well" c++ -std=c++11 -Wall -Wextra -Werror -fsyntax-only -I usr/include header.cpp
else
    skip "the header is C++ as well" "no c++ here"
fi
check "the installed program runs" usr/bin/graft version
if [ -e "$BUILD/libgraft_cuda.so" ] && [ -x "$emulator" ]; then
    mkdir driver && echo 'extern int nothing;' | cc -shared -x c -o driver/libcuda.so.1 - # looked for before the backend
    check "and finds its CUDA backend" bash -c 'env -u GRAFT_CUDA_LIB -u SHELLOPTS LD_LIBRARY_PATH=driver "$1" -- \
        usr/bin/graft doctor | grep "cuda:0"' _ "$emulator"
else
    skip "and finds its CUDA backend" "needs a build with CUDA's toolkit and $emulator"
fi
check "the man page formats" bash -c '! command -v man >/dev/null || man -l usr/share/man/man1/graft.1 | grep EXIT'
finish
