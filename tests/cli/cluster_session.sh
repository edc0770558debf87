# Sourced by tests of a cluster's commands: session.sh, and processes that end with the test.
source "$(dirname "${BASH_SOURCE[0]}")/session.sh"
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN FASTSERVE_JOIN_TOKEN
declare -A pids
trap 'kill -KILL "${pids[@]}" 2>/dev/null; wait 2>/dev/null; rm -rf "$scratch"' EXIT
give_up() {
  problem "$1"
  for log in "$scratch"/*.log; do echo "== $log"; tail -n 15 "$log"; done >&2
  finish
  exit 1
}
# until_true WHAT COMMAND...: within a minute.
until_true() {
  local what="$1"
  shift
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  give_up "$what"
}
