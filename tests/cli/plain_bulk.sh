#!/usr/bin/env bash
# plain_bulk.sh FSCTL DATA: tensors leave TLS only between two ends that were both told so, nodes are refused that
# allow it too widely, and the weights have the bits of the job in one process. Lanes have the streams that who dials
# was told.
set -u
fsctl=$1 data=$2
work=$(mktemp -d)
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN
pids=()
finish() {
  kill "${pids[@]}" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
fail() {
  echo "FAILED: $1" >&2
  for log in "$work"/*.log; do echo "== $log"; tail -n 20 "$log"; done >&2
  exit 1
}

FASTSERVE_HOME=$work/coordinator "$fsctl" cluster init --json >"$work/init.json" || fail "no cluster"
token=$(grep -o 'fsj1-[0-9a-f-]*' "$work/init.json" | head -1)
FASTSERVE_HOME=$work/coordinator "$fsctl" cluster start --port 0 --endpoint-file "$work/endpoint" >"$work/coordinator.log" 2>&1 &
pids+=($!)
for _ in {1..100}; do
  [[ -s $work/endpoint ]] && break
  sleep 0.1
done
endpoint=$(<"$work/endpoint")

joining=(node start --join "$endpoint" --token "$token" --lanes 1)
start() {
  FASTSERVE_HOME=$work/$1 "$fsctl" "${joining[@]}" --name "$1" "${@:2}" >"$work/$1.log" 2>&1 &
  pids+=($!)
}
refused() {
  FASTSERVE_HOME=$work/wide "$fsctl" "${joining[@]}" "$@" >"$work/wide.log" 2>&1 && fail "$* is not refused"
  grep -q -- "$said" "$work/wide.log" || fail "$* does not say $said"
}
said="name the network that nobody listens in" refused --plain-bulk --address 0.0.0.0
said="says nothing without --plain-bulk" refused --trusted-network 10.1.0.0/16
said="is no network" refused --plain-bulk --trusted-network 10.1.0.0/99
said="every network there is" refused --plain-bulk --trusted-network 0.0.0.0/0

start plain-1 --plain-bulk --streams 3
start plain-2 --plain-bulk
start sealed --streams 2
ask() { FASTSERVE_HOME=$work/coordinator "$fsctl" --cluster "$endpoint" "$@"; }
for _ in {1..100}; do
  [[ $(ask node list --json 2>/dev/null | grep -o '"state": *"ready"' | wc -l) == 3 ]] && break
  sleep 0.1
done
settings=(--data "$data" --preset tiny --steps 12 --model plain)
ask --quiet train "${settings[@]}" >/dev/null || fail "the job fails"

# Whichever of two nodes dials, both tell of the lane.
lane() { grep -q "lane to $2: tensors $3" "$work/$1.log" || fail "$1 has no lane to $2 with tensors $3"; }
lane plain-1 plain-2 "plain over 3 sockets"
lane plain-2 plain-1 "plain over 3 sockets"
lane plain-1 sealed "in TLS 1.3 over 3 sockets"
lane sealed plain-1 "in TLS 1.3 over 3 sockets"
lane plain-2 sealed "in TLS 1.3$"
lane sealed plain-2 "in TLS 1.3$"
lane plain-1 coordinator "in TLS 1.3 over 3 sockets"
lane plain-2 coordinator "in TLS 1.3$"
lane sealed coordinator "in TLS 1.3 over 2 sockets"
hash() { FASTSERVE_HOME=$1 "$fsctl" models show plain --json | grep -o '"weights_hash": *"[0-9a-f]*"' | head -1; }
FASTSERVE_HOME=$work/alone "$fsctl" --quiet train "${settings[@]}" >/dev/null || fail "the job alone fails"
cluster_hash=$(hash "$work/coordinator")
[[ $cluster_hash && $cluster_hash == "$(hash "$work/alone")" ]] || fail "other bits than alone"
