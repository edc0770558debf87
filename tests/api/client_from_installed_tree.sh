#!/usr/bin/env bash
# client_from_installed_tree.sh BUILD_DIR SOURCE_DIR COMPILER: installs, builds the example client against
# the installed tree alone, and asks a deployment of the installed command. The installed schema compiles
# where no file of the sources is near.
set -euo pipefail
scratch="$(mktemp -d)"
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$scratch"' EXIT
cmake --install "$1" --prefix "$scratch/prefix" >/dev/null
fsctl="$scratch/prefix/bin/fsctl"

mkdir "$scratch/schema"
cp "$scratch/prefix/share/fastserve/schema/fastserve.capnp" "$scratch/schema"
(cd "$scratch/schema" && capnp compile -oc++ fastserve.capnp && [ -s fastserve.capnp.h ]) ||
  { echo "the installed schema does not compile alone"; exit 1; }

cmake -G Ninja -S "$2/examples/client" -B "$scratch/build" -DCMAKE_CXX_COMPILER="$3" \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null
cmake --build "$scratch/build" >/dev/null

"$fsctl" -q --store "$scratch/store" train --data "$2/data/tinyshakespeare" --preset tiny --steps 3 \
  --evaluate-sequences 8 --model small >/dev/null
"$fsctl" -q --store "$scratch/store" deploy small --port 0 --port-file "$scratch/port" >/dev/null &
server=$!
for _ in $(seq 600); do
  [ -s "$scratch/port" ] && break
  sleep 0.05
done
timeout 60 "$scratch/build/client" 127.0.0.1 "$(cat "$scratch/port")" "ROMEO:" | tee "$scratch/answer"
grep -q "small@1: bf16" "$scratch/answer"
grep -q "20 tokens, ended by length" "$scratch/answer"
kill -INT "$server"
wait "$server"
server=
if timeout 60 "$scratch/build/client" 127.0.0.1 "$(cat "$scratch/port")" "ROMEO:" 2>"$scratch/error"; then
  echo "a client of a server that is gone succeeded"
  exit 1
fi
grep -q "nothing listens there" "$scratch/error"
