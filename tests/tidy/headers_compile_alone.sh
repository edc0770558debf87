#!/usr/bin/env bash
# headers_compile_alone.sh COMPILER SOURCE_DIR BUILD_DIR: each header of the rooms, on its own.
# Headers that belong to one instruction set are compiled by their .cc files only.
set -u
compiler="$1" generated="$3"
cd "$2" || exit 2
failed=0 count=0
for header in base/*.h model/*.h model/*/*.h cpu/*.h cpu/reference/*.h store/*.h train/*.h compress/*.h \
              serve/*.h rpc/*.h actors/*.h api/*.h api/fastserve/*.h cli/*.h; do
  [ -e "$header" ] || continue
  grep -q 'intrin.h>\|per-ISA header' "$header" && continue
  count=$((count + 1))
  "$compiler" -std=c++20 -fsyntax-only -x c++ -I. -Iapi -I"$generated" "$header" 2>/tmp/header.$$ || {
    failed=$((failed + 1)); echo "$header does not compile alone:"; head -5 /tmp/header.$$; }
done
rm -f /tmp/header.$$
echo "$count headers, $failed failed"
[ "$failed" -eq 0 ]
