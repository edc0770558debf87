#!/usr/bin/env bash
# headers_compile_alone.sh COMPILER SOURCE_DIR BUILD_DIR: each header of the rooms, on its own, with the
# warnings a careful host has on for those that hosts include.
# Headers that belong to one instruction set are compiled by their .cc files only.
set -u
compiler="$1" generated="$3"
cd "$2" || exit 2
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
failed=0 count=0
for header in $(find base model cpu store train compress serve net rpc actors api cli -name '*.h' | sort); do
  grep -q 'intrin.h>\|per-ISA header' "$header" && continue
  count=$((count + 1))
  strict=()
  [[ $header == api/fastserve/* ]] && strict=(-Wall -Wextra -Wpedantic -Werror)
  echo "#include \"$header\"" |
    "$compiler" -std=c++20 "${strict[@]}" -fsyntax-only -x c++ -I. -Iapi -I"$generated" - 2>"$errors" || {
    failed=$((failed + 1)); echo "$header does not compile alone:"; head -5 "$errors"; }
done
echo "$count headers, $failed failed"
[ "$failed" -eq 0 ]
