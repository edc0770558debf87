#!/usr/bin/env bash
# headers_compile_alone.sh COMPILER SOURCE_DIR BUILD_DIR: each header of the rooms, on its own, with the
# warnings a careful host has on for those that hosts include.
# Headers that belong to one instruction set, or to CUDA, are compiled by their .cc files only. So are those that a .cc
# of their name includes first: the build has shown that they do.
set -u
export compiler="$1" generated="$3"
cd "$2" || exit 2

check() {
  local strict=() said source="${1%.*}.cc"
  [[ -f $source && $(grep -m1 '^#include' "$source") == "#include \"$1\"" ]] && return 0
  [[ $1 == api/fastserve/* ]] && strict=(-Wall -Wextra -Wpedantic -Werror)
  said="$(echo "#include \"$1\"" |
    "$compiler" -std=c++20 "${strict[@]}" -fsyntax-only -x c++ -I. -Iapi -I"$generated" - 2>&1)" && return 0
  echo "$1 does not compile alone:"
  head -5 <<<"$said"
  return 1
}
export -f check

find base model cpu gpu store train compress serve net cluster rpc actors api cli \
    -not -path 'gpu/cuda/*' '(' -name '*.h' -o -name '*.cuh' ')' -print0 |
  xargs -0 grep -LZ 'intrin.h>\|per-ISA header' |
  xargs -0 -n 1 -P "$(nproc)" bash -c 'check "$0"'
