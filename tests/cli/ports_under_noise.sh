#!/usr/bin/env bash
# ports_under_noise.sh FSCTL PORT_NOISE DATA [CONNECTIONS [SEED]]: every port of a cluster and of a deployment is told
# nonsense by strangers, by holders of foreign, outdated and unknown certificates, and by a member. Nothing crashes, a
# job ends in the bits of one alone, and then no thread spins, no connection stays, and more noise takes no more memory.
set -u
fsctl=$1 noise=$2 data=$3 connections=${4:-600} seed=${5:-1}
work=$(mktemp -d)
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN
pids=() names=()
finish() {
  kill "${pids[@]}" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$work"
}
trap finish EXIT
fail() {
  echo "FAILED: $1" >&2
  for log in "$work"/*.log; do echo "== $log"; tail -n 15 "$log"; done >&2
  exit 1
}
start() {  # NAME ARGUMENTS...: a process with a folder of its own
  FASTSERVE_HOME=$work/$1 "$fsctl" "${@:2}" >"$work/$1.log" 2>&1 &
  pids+=($!) names+=("$1")
}
await() {  # WHAT COMMAND...
  for _ in {1..300}; do
    "${@:2}" >/dev/null 2>&1 && return
    sleep 0.1
  done
  fail "$1 did not come"
}

FASTSERVE_HOME=$work/coordinator "$fsctl" cluster init --json >"$work/init.json" || fail "no cluster"
token=$(grep -o 'fsj1-[0-9a-f-]*' "$work/init.json" | head -1)
start coordinator cluster start --port 0 --endpoint-file "$work/endpoint"
await "the coordinator" test -s "$work/endpoint"
endpoint=$(<"$work/endpoint")
ask() { FASTSERVE_HOME=$work/coordinator "$fsctl" --cluster "$endpoint" "$@"; }
for name in a b; do start $name node start --join "$endpoint" --token "$token" --lanes 1 --name $name; done
ready() { [[ $(ask node list --json | grep -o '"state": *"ready"' | wc -l) == "$1" ]]; }
await "the nodes" ready 2
settings=(--data "$data" --preset tiny --steps 150)
ask --quiet train "${settings[@]}" --model first >/dev/null || fail "the first job"
ask models export first "$work/first" >/dev/null || fail "no export"
FASTSERVE_HOME=$work/server "$fsctl" -q models import "$work/first" --name first >/dev/null || fail "no import"
start server --quiet deploy first --port 0 --port-file "$work/port"
await "the deployment" test -s "$work/port"

mapfile -t ports < <(ask node list --json | grep -o '"address": *"[^"]*"' | cut -d'"' -f4)
ports=("$endpoint" "${ports[@]}" "127.0.0.1:$(<"$work/port")")
[[ ${#ports[@]} == 4 ]] || fail "ports: ${ports[*]}"
make_noise() { "$noise" "$work/coordinator/cluster/authority" "$token" "$1" "$connections" "${ports[@]}" || fail "no noise"; }
memory() { awk '/^VmRSS/ {print $2}' "/proc/$1/status"; }
open_files() { ls "/proc/$1/fd" | wc -l; }
ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }

ask --quiet train "${settings[@]}" --model steady >/dev/null 2>"$work/train.log" &
job=$!
for i in 1 2; do make_noise $((seed * 1000 + i)); done
wait $job || fail "the job fails: $(<"$work/train.log")"
FASTSERVE_HOME=$work/alone "$fsctl" --quiet train "${settings[@]}" --model steady >/dev/null || fail "the job alone fails"
hash() { FASTSERVE_HOME=$1 "$fsctl" models show steady --json | grep -o '"weights_hash": *"[0-9a-f]*"' | head -1; }
cluster_hash=$(hash "$work/coordinator")
[[ $cluster_hash && $cluster_hash == "$(hash "$work/alone")" ]] || fail "other bits than alone"

# Whatever is made once, or belongs to the job, has been made now.
before=() files=()
for pid in "${pids[@]}"; do before+=("$(memory "$pid")") files+=("$(open_files "$pid")"); done
for i in 3 4; do make_noise $((seed * 1000 + i)); done
"$fsctl" -q generate --connect "${ports[3]}" --prompt A --max-tokens 5 >/dev/null || fail "the deployment does not answer"
ready 2 || fail "a node is not ready"

for i in "${!pids[@]}"; do
  pid=${pids[$i]} name=${names[$i]}
  kill -0 "$pid" || fail "$name has ended"
  settled() { (($(open_files "$pid") <= files[i] + 8)); }
  await "the end of $name's connections" settled
  from=$(ticks "$pid")
  sleep 2
  spent=$(($(ticks "$pid") - from))
  ((spent < $(getconf CLK_TCK))) || fail "$name computes with nothing to do: $spent ticks in 2 s"
  grown=$(($(memory "$pid") - before[i]))
  ((grown < 8192)) || fail "$name has $grown KiB more than before"
  echo "$name: $spent ticks in 2 s, $grown KiB more, $(open_files "$pid") files open (before: ${files[$i]})"
done
