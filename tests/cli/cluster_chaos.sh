#!/usr/bin/env bash
# cluster_chaos.sh FSCTL DATA [EVENTS [SEED [STEPS [LOG [CONSISTENCY [CHECKPOINTS [REPLICAS]]]]]]]: one training job over a cluster of real processes,
# while its coordinator and its nodes are killed (-9), stopped and continued, and cut off from the network, at
# random. The finished weights must have the bits of the same job in one process, and the job's ledger must be
# clean. Where this machine can have no network namespaces, everything is on loopback and nothing is cut off.
#
# With a CONSISTENCY other than exact (local:16, stale:3, async) no bits are promised: the job must end, its ledger
# must be clean, and it must have learned.
#
# With CHECKPOINTS nodes they lie in pieces on the nodes' disks, one of which is lost with its node's process in the
# midst of it all.
#
# With REPLICAS nodes alone are killed, one at a time and each while no copy is missing: then no step may be replayed,
# and the job must have begun once.
#
# The last line is the verdict; every event is a line as it happens. With LOG a run that was interrupted takes up
# its job where it was, when it is started again with the same words: the cluster's folder lies beside the log.
#
# The short version runs in ctest; the long one is
#   sudo tests/cli/cluster_chaos.sh build/release/cli/fsctl data/tinyshakespeare 200 1 40000 chaos.log
set -u
fsctl=$1 data=$2 events=${3:-8} seed=${4:-1} steps=${5:-700} log=${6:-} consistency=${7:-exact} checkpoints=${8:-coordinator}
replicas=${9:-0}
about="seed $seed"
settings=(--preset tiny --steps "$steps")
[[ $consistency == exact ]] || settings+=(--consistency "$consistency" --gradients int8)
of_cluster=()
[[ $checkpoints == coordinator ]] || of_cluster+=(--checkpoints "$checkpoints")
((replicas == 0)) || of_cluster+=(--replicas "$replicas")
here=$(dirname "${BASH_SOURCE[0]}")
network=
"$here/../netns/net.sh" can >/dev/null 2>&1 && network=fs$$
[[ $log ]] && folder=$(realpath -m "$log.d")
source "$here/../netns/cluster.sh"

done_events=0
if [[ $log && -e $log ]]; then done_events=$(grep -c '^[0-9:.]* event ' "$log"); fi
RANDOM=$((seed + done_events))
[[ -z $network ]] || "$net" up "$network" 4
start_cluster server-1 server-2 worker-1
[[ $job ]] || start_job
say "job $job of $steps steps, seed $seed, $done_events of $events events done${network:+, in namespaces}"

# One disk may go when the newest checkpoint lies on two: while one node alone was there it did not.
on_two_disks() {
  local newest
  newest=$(ls -d "$work/coordinator/jobs/$job/checkpoints"/step-* 2>/dev/null | tail -1)
  grep -q server-1 "$newest/checkpoint.json" 2>/dev/null && grep -q server-2 "$newest/checkpoint.json" 2>/dev/null
}
lose_a_disk() {
  local victim=server-$((1 + RANDOM % 2))
  until_true 60 "no checkpoint lies on both disks" on_two_disks
  say "event $((done_events + 1)) of $events, step $(step): kill -9 $victim, and its checkpoints are lost"
  kill -9 "${pids[$victim]}" && wait "${pids[$victim]}" 2>/dev/null
  rm -rf "$work/$victim/node-checkpoints"
  start "$victim"
}

names=(coordinator "${nodes[@]}")
kinds=(kill kill stop)
[[ -z $network ]] || kinds+=(cut)
((replicas == 0)) || { names=("${nodes[@]}") kinds=(kill); }
all_held() { [[ $(field note) == "replicas $replicas of $replicas"* ]] || ended; }
for ((; done_events < events; done_events++)); do
  sleep "$((RANDOM % 2)).$((RANDOM % 10))"
  ((replicas == 0)) || { sleep 1; until_true 60 "the missing copies are not made" all_held; }
  [[ $(state) == finished ]] && break
  for name in "${names[@]}"; do
    kill -0 "${pids[$name]}" 2>/dev/null || fail "$name has ended by itself"
  done
  if [[ $checkpoints == nodes ]] && ((done_events == events / 2)); then
    lose_a_disk
    continue
  fi
  victim=${names[RANDOM % ${#names[@]}]} pause=$((RANDOM % 8)).$((RANDOM % 10))
  event="event $((done_events + 1)) of $events, step $(step):"
  case ${kinds[RANDOM % ${#kinds[@]}]} in
    kill)
      say "$event kill -9 $victim"
      kill -9 "${pids[$victim]}" && wait "${pids[$victim]}" 2>/dev/null
      sleep "0.$((RANDOM % 10))"
      start "$victim"
      ;;
    stop)
      say "$event stop $victim for $pause s"
      kill -STOP "${pids[$victim]}"
      sleep "$pause"
      kill -CONT "${pids[$victim]}"
      ;;
    cut)
      say "$event cut off $victim for $pause s"
      "$net" cut "$network" "${places[$victim]}"
      sleep "$pause"
      "$net" heal "$network" "${places[$victim]}"
      ;;
  esac
done
say "$done_events events; waiting for the job"
((2 * done_events >= events)) || fail "the job ended after $done_events of $events events: give more steps"
if [[ $consistency == exact ]]; then
  ends_as_alone 1200
  if ((replicas > 0)); then
    [[ $begun == "1 0" ]] || fail "it began, and replayed, $begun times and steps: 1 0 is right"
    say "no step was replayed"
  fi
  say "$done_events events, seed $seed: the same bits, a clean ledger"
else
  ends_clean 1200
  loss=$(field validation_loss)
  # A model that has learned nothing is at ln 65 = 4.2; not a number fails, too.
  awk -v loss="$loss" 'BEGIN { exit !(loss > 0.5 && loss < 3) }' || fail "it has not learned: validation loss $loss"
  say "$done_events events, seed $seed, $consistency: validation loss $loss, a clean ledger"
fi
