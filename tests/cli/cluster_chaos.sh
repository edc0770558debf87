#!/usr/bin/env bash
# cluster_chaos.sh FSCTL DATA [EVENTS [SEED [STEPS]]]: one training job over a cluster of real processes,
# while its coordinator and its nodes are killed (-9), stopped and continued at random. The finished
# weights must have the bits of the same job in one process, and the job's ledger must be clean.
#
# The short version runs in ctest; the long one is
#   tests/cli/cluster_chaos.sh build/release/cli/fsctl data/tinyshakespeare 200 1 12000
set -u
fsctl=$1 data=$2 events=${3:-8} seed=${4:-1} steps=${5:-700}
work=$(mktemp -d)
RANDOM=$seed
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN
declare -A pids

finish() {
  for name in "${!pids[@]}"; do kill -CONT "${pids[$name]}"; kill -9 "${pids[$name]}"; done 2>/dev/null
  wait 2>/dev/null
  [[ ${keep:-} ]] || rm -rf "$work"
}
trap finish EXIT
fail() {
  echo "FAILED (seed $seed): $1; logs in $work" >&2
  for log in "$work"/*.log; do echo "== $log"; tail -30 "$log"; done >&2
  keep=yes
  exit 1
}
say() { echo "$(date +%T.%N | cut -c1-12) $*" | tee -a "$work/events.log"; }

free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 20000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}
port=$(free_port)
FASTSERVE_HOME=$work/coordinator "$fsctl" cluster init --port "$port" --json >"$work/init.json" || fail "no cluster"
token=$(grep -o 'fsj1-[0-9a-f-]*' "$work/init.json" | head -1)

start() {
  if [[ $1 == coordinator ]]; then
    FASTSERVE_HOME=$work/coordinator "$fsctl" cluster start >>"$work/coordinator.log" 2>&1 &
  else
    local roles=trainer,parameter-server
    [[ $1 == worker-* ]] && roles=trainer
    FASTSERVE_HOME=$work/$1 "$fsctl" node start --join "127.0.0.1:$port" --token "$token" --name "$1" \
      --roles "$roles" --lanes 1 >>"$work/$1.log" 2>&1 &
  fi
  pids[$1]=$!
}
ask() { FASTSERVE_HOME=$work/coordinator "$fsctl" --cluster "127.0.0.1:$port" "$@"; }
settings=(--data "$data" --preset tiny --steps "$steps" --model chaos)

start coordinator
for name in server-1 server-2 worker-1; do start "$name"; done
for _ in {1..100}; do
  job=$(ask train "${settings[@]}" --detach --json 2>/dev/null | grep -o '"id": *"[0-9a-f]*"' | grep -o '[0-9a-f]\{8\}')
  [[ $job ]] && break
  sleep 0.1
done
[[ $job ]] || fail "the job does not start"

state() {
  ask jobs show "$job" --json 2>/dev/null | grep -o '"state": *"[a-z]*"' | head -1 | grep -o '[a-z]*"$' | tr -d '"'
}
names=(coordinator server-1 server-2 worker-1)
done_events=0
for ((i = 0; i < events; i++)); do
  sleep "$((RANDOM % 2)).$((RANDOM % 10))"
  [[ $(state) == finished ]] && break
  victim=${names[RANDOM % ${#names[@]}]}
  for name in "${names[@]}"; do
    kill -0 "${pids[$name]}" 2>/dev/null || fail "$name has ended by itself"
  done
  if ((RANDOM % 3)); then
    say "kill -9 $victim"
    kill -9 "${pids[$victim]}" && wait "${pids[$victim]}" 2>/dev/null
    sleep "0.$((RANDOM % 10))"
    start "$victim"
  else
    pause=$((RANDOM % 8)).$((RANDOM % 10))
    say "stop $victim for $pause s"
    kill -STOP "${pids[$victim]}"
    sleep "$pause"
    kill -CONT "${pids[$victim]}"
  fi
  ((done_events++))
done
say "$done_events events; waiting for the job"
((2 * done_events >= events)) || fail "the job ended after $done_events of $events events: give more steps"
for _ in {1..1200}; do
  [[ $(state) == finished ]] && break
  [[ $(state) == failed ]] && fail "the job failed"
  sleep 0.5
done
[[ $(state) == finished ]] || fail "the job does not end"
ask jobs audit "$job" >"$work/audit.log" 2>&1 || fail "the ledger is not clean: $(cat "$work/audit.log")"
say "finished: $(ask jobs show "$job" --json | grep -o '"\(incarnation\|replayed_steps\)": *[0-9]*' | tr '\n' ' ')"

hash() { FASTSERVE_HOME=$1 "$fsctl" models show chaos --json | grep -o '"weights_hash": *"[0-9a-f]*"' | head -1; }
for name in "${!pids[@]}"; do kill "${pids[$name]}"; done
wait
FASTSERVE_HOME=$work/alone "$fsctl" --quiet train "${settings[@]}" >/dev/null || fail "the job alone fails"
cluster_hash=$(hash "$work/coordinator") alone_hash=$(hash "$work/alone")
[[ $cluster_hash && $cluster_hash == "$alone_hash" ]] || fail "other bits: $cluster_hash, alone $alone_hash"
say "the same bits: $cluster_hash"
