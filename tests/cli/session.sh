# Sourced by the command's tests: a scratch store, and what to say when a step fails.
set -u
fsctl="$1"
source_dir="$2"
scratch="$(mktemp -d)"
export FASTSERVE_HOME="$scratch/store"
server=
stop_server() {
  [ -n "$server" ] || return 0
  kill -INT "$server" 2>/dev/null
  wait "$server"
  local code=$?
  server=
  return $code
}
trap 'stop_server; rm -rf "$scratch"' EXIT

failures=0
problem() { echo "FAILED: $*"; failures=$((failures + 1)); }

# json FILE KEY: the value of a top-level key.
json() { sed -n "s/^ *\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$1" | head -1; }

# start_server MODEL...: deploys on a free port; sets $port.
start_server() {
  rm -f "$scratch/port"
  "$fsctl" -q deploy "$@" --port 0 --port-file "$scratch/port" >"$scratch/server.log" 2>&1 &
  server=$!
  for _ in $(seq 600); do
    [ -s "$scratch/port" ] && { port=$(cat "$scratch/port"); return 0; }
    kill -0 "$server" 2>/dev/null || break
    sleep 0.05
  done
  cat "$scratch/server.log"
  problem "the server did not start"
  return 1
}

# must_fail CODE WORDS COMMAND...: exits with CODE and says WORDS on stderr.
must_fail() {
  local code="$1" words="$2"
  shift 2
  timeout -k 5 60 "$@" >"$scratch/out" 2>"$scratch/err"
  local got=$?
  [ "$got" = "$code" ] || problem "exit $got instead of $code: $*: $(head -3 "$scratch/err")"
  grep -qi -- "$words" "$scratch/err" || problem "does not say \"$words\": $*: $(head -3 "$scratch/err")"
}

finish() {
  echo "$failures failures"
  [ "$failures" -eq 0 ]
}
