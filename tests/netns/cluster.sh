# A cluster of real processes on this machine, for scripts that source this after setting
#   fsctl, data   the command, and what to train on
#   settings      of the job, beside --data and --model
#   network       the name of a network that net.sh puts up; empty: everything is on loopback
# and perhaps
#   of_cluster    settings that the same job in one process has not
#   coordinator_env, node_env   words like NAME=VALUE for processes that start
#   folder, log   where the cluster lies from one run to the next, and where its events are told
# The coordinator is at place 0 of the network, node I of `nodes` at place I + 1. A node whose name
# begins with worker has no parameters.
net=$(dirname "${BASH_SOURCE[0]}")/net.sh
work=${folder:-$(mktemp -d)}
mkdir -p "$work"
model=survivor
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN
job=
declare -A pids places
mounts=() coordinator_env=() node_env=()
[[ -v of_cluster ]] || of_cluster=()

finish() {
  for name in "${!pids[@]}"; do kill -CONT "${pids[$name]}"; kill -9 "${pids[$name]}"; done 2>/dev/null
  wait "${pids[@]}" 2>/dev/null
  [[ -z $network ]] || "$net" down "$network"
  for mounted in "${mounts[@]}"; do umount "$mounted"; done
  [[ ${keep:-} || ${folder:-} ]] || rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM

say() { echo "$(date +%T.%N | cut -c1-12) $*" | tee -a "${log:-$work/events.log}"; }
fail() {
  echo "FAILED${about:+ ($about)}: $1; logs in $work" >&2
  for log in "$work"/*.log; do echo "== $log"; tail -30 "$log"; done >&2
  keep=yes
  exit 1
}

# Whose words these are: run at that place of the network.
at() {
  if [[ $network ]]; then prefix=(ip netns exec "$network-${places[$1]}"); else prefix=(); fi
}
address() { if [[ $network ]]; then echo "10.213.77.$((places[$1] + 1))"; else echo 127.0.0.1; fi; }

# Below the ports that the kernel hands out (32768 and up): one of those may be taken between the look and its use.
free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

start() {
  at "$1"
  if [[ $1 == coordinator ]]; then
    env "${coordinator_env[@]}" FASTSERVE_HOME="$work/$1" "${prefix[@]}" "$fsctl" cluster start >>"$work/$1.log" 2>&1 &
  else
    local roles=trainer,parameter-server
    [[ $1 == worker-* ]] && roles=trainer
    env "${node_env[@]}" FASTSERVE_HOME="$work/$1" "${prefix[@]}" "$fsctl" node start --join "$endpoint" \
      --token "$token" --name "$1" --roles "$roles" --lanes 1 --address "$(address "$1")" >>"$work/$1.log" 2>&1 &
  fi
  pids[$1]=$!
}
stop() { kill "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null; unset "pids[$1]"; }

ask() {
  at coordinator
  FASTSERVE_HOME=$work/coordinator timeout 20 "${prefix[@]}" "$fsctl" --cluster "$endpoint" "$@"
}

# start_cluster NODE...: init, and every process.
start_cluster() {
  local place=0
  nodes=("$@")
  for name in coordinator "$@"; do places[$name]=$((place++)); done
  if [[ -e $work/endpoint ]]; then
    endpoint=$(<"$work/endpoint")
  else
    endpoint=$(address coordinator):$(if [[ $network ]]; then echo 7070; else free_port; fi)
    FASTSERVE_HOME=$work/coordinator "$fsctl" cluster init --address "${endpoint%:*}" --port "${endpoint#*:}" --json \
      >"$work/init.json" || fail "no cluster"
    echo "$endpoint" >"$work/endpoint"
  fi
  token=$(grep -o 'fsj1-[0-9a-f-]*' "$work/init.json" | head -1)
  [[ -e $work/job.json ]] && read_job
  for name in coordinator "$@"; do start "$name"; done
  until_true 30 "the cluster does not come up" all_ready
}
all_ready() { [[ $(ask node list 2>/dev/null | awk '$2 == "ready"' | wc -l) == "${#nodes[@]}" ]]; }

start_job() {
  ask train --data "$data" --model "$model" "${settings[@]}" "${of_cluster[@]}" --detach --json >"$work/job.json" || fail "no job"
  read_job
}
read_job() { job=$(grep -o '"id": *"[0-9a-f]*"' "$work/job.json" | grep -o '[0-9a-f]\{8\}'); }

# What the coordinator says: empty where it does not answer.
field() { ask jobs show "$job" --json 2>/dev/null | sed -n "s/^ *\"$1\": *\"\?\([^\",]*\)\"\?,\?$/\1/p" | head -1; }
state() { field state; }
step() { local at; at=$(field step); echo "${at:-0}"; }
node_state() { ask node list 2>/dev/null | awk -v node="$1" '$1 == node { print $2 }'; }
works_in_job() { ask node list 2>/dev/null | grep "^$1 .* ready .* $job" >/dev/null; }

# until_true SECONDS "WHAT IF NOT" COMMAND...
until_true() {
  local deadline=$((SECONDS + $1)) otherwise=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || fail "$otherwise"
    sleep 0.3  # each question costs a handshake
  done
}
is() { [[ $("${@:2}") == "$1" ]]; }
is_not() { [[ $("${@:2}") != "$1" ]]; }
past() { (($(step) > $1)); }
ended() { local now; now=$(state); [[ $now == failed ]] && fail "the job failed"; [[ $now == finished ]]; }

weights() { FASTSERVE_HOME=$1 "$fsctl" models show "$model" --json | grep -o '"weights_hash": *"[0-9a-f]*"' | head -1; }

# The job ends, and its ledger is clean.
ends_clean() {
  until_true "${1:-120}" "the job does not end" ended
  ask jobs audit "$job" >"$work/audit.log" 2>&1 || fail "the ledger is not clean: $(cat "$work/audit.log")"
  begun="$(field incarnation) $(field replayed_steps)"
  say "finished: incarnation ${begun% *}, ${begun#* } steps replayed; the ledger is clean"
}
# And its weights are those of the same job in one process.
ends_as_alone() {
  ends_clean "$@"
  for name in "${!pids[@]}"; do stop "$name"; done
  FASTSERVE_HOME=$work/alone "$fsctl" --quiet train --data "$data" --model "$model" "${settings[@]}" >/dev/null ||
    fail "the job alone fails"
  local ours alone
  ours=$(weights "$work/coordinator") alone=$(weights "$work/alone")
  [[ $ours && $ours == "$alone" ]] || fail "other bits: $ours, alone $alone"
  say "the same bits as alone: $ours"
}
