#!/usr/bin/env bash
# embed_from_installed_tree.sh BUILD_DIR SOURCE_DIR COMPILER: installs, builds the example against the
# installed tree alone, with the warnings a careful host has on, and runs it.
set -euo pipefail
top="$(mktemp -d)"
trap 'rm -rf "$top"' EXIT
scratch="$top/a place with spaces"
prefix="$scratch/prefix"
mkdir "$scratch"
cmake --install "$1" --prefix "$prefix" >/dev/null
for file in bin/fsctl include/fastserve/fastserve.h share/fastserve/schema/fastserve.capnp \
            lib/cmake/fastserve/fastserve-config.cmake share/doc/fastserve/README.md \
            share/doc/fastserve/docs/fsctl.md share/doc/fastserve/examples/embed/embed.cc \
            share/bash-completion/completions/fsctl share/zsh/site-functions/_fsctl \
            share/fish/vendor_completions.d/fsctl.fish; do
  [ -s "$prefix/$file" ] || { echo "not installed: $file"; exit 1; }
done
"$prefix/bin/fsctl" version
cmake -G Ninja -S "$2/examples/embed" -B "$scratch/build" -DCMAKE_CXX_COMPILER="$3" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
  -DCMAKE_CXX_FLAGS="-Wall -Wextra -Wpedantic -Werror" >/dev/null
cmake --build "$scratch/build" >/dev/null
"$scratch/build/embed" "$2/data/tinyshakespeare" "$scratch/work"
