#!/usr/bin/env bash
# embed_from_installed_tree.sh BUILD_DIR SOURCE_DIR COMPILER: installs, builds the example against the
# installed tree alone, and runs it.
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
cmake --install "$1" --prefix "$scratch/prefix" >/dev/null
for file in bin/fsctl include/fastserve/fastserve.h share/fastserve/schema/fastserve.capnp; do
  [ -e "$scratch/prefix/$file" ] || { echo "not installed: $file"; exit 1; }
done
cmake -G Ninja -S "$2/examples/embed" -B "$scratch/build" -DCMAKE_CXX_COMPILER="$3" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null
cmake --build "$scratch/build" >/dev/null
"$scratch/build/embed" "$2/data/tinyshakespeare" "$scratch/work"
