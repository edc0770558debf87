#!/usr/bin/env bash
# trouble.sh FSCTL DATA CASE...: a coordinator and nodes, a training job over them, and networks, disks and
# clocks that misbehave. Each time what happens is noticed and named, the job survives it, and the weights
# have the bits of the same job in one process. Several cases run at once; each prints its steps and a last
# line. Where the machine cannot be made to misbehave so: exit code 77, and one word why.
#
# With every process in a network namespace of its own:
#   slow        20 +- 5 ms one way and 1 % loss, from the first connection on
#   capped      1 Gb/s, then 10 Mb/s, in the middle of the job
#   worker      a node without parameters is cut off; the job goes on without it; it comes back
#   server      a node with parameters is cut off; they are restored elsewhere; it comes back (not in ctest)
#   minority    the coordinator is cut off from every node: nobody commits a step until it is back
#   apart       two nodes reach the coordinator, and not each other
#   stopped     SIGSTOP of a node with parameters for longer than any patience
#   frozen      the same of the coordinator
# On loopback:
#   full        a node's disk is too small for the data; later the coordinator's is full for a while
#   slow-disk   the coordinator's disk takes 2 s for each file of a checkpoint
#   clock       a node's clock is off by a minute, another's by hours; the coordinator's is set back
set -u
fsctl=$1 data=$2
shift 2
if (($# > 1)); then
  running=() failed=0
  for one in "$@"; do "${BASH_SOURCE[0]}" "$fsctl" "$data" "$one" & running+=($!); done
  for pid in "${running[@]}"; do
    wait "$pid"
    code=$?
    ((code == 0 || failed == 1)) || failed=$((code == 77 ? 77 : 1))
  done
  exit $failed
fi
about=$1
network=fs$$
settings=(--preset tiny)
source "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

skip() { echo "$about: skipped: $1"; exit 77; }
have() {
  local word
  word=$("$net" can "$@") || skip "$word"
}
# What makes a process's machine worse; fails where that has no effect.
machine() {
  local so=${FASTSERVE_MACHINE:-$(dirname "$net")/../../build/release/tests/libnetns_machine.so}
  echo "$so"
  [[ $(MACHINE_SKEW=-1000000000 LD_PRELOAD=$so date +%s) -lt $(($(date +%s) - 900000000)) ]]
}
small_disk() {  # small_disk NAME SIZE
  mkdir -p "$work/$1"
  mount -t tmpfs -o "size=$2" none "$work/$1" || skip tmpfs
  mounts+=("$work/$1")
}
job_notes() { ask jobs show "$job" | grep -q "$1"; }
job_says() { grep -q "$1" "$work/coordinator/jobs/$job/log.txt"; }
named() { ask status 2>/dev/null | grep -q "$1"; }
noticed() {
  until_true 15 "nobody notices: $1" is_not ready node_state "$1"
  say "$1 is $(node_state "$1")"
}
back() {
  until_true 30 "$1 does not come back into the job" works_in_job "$1"
  say "$1 is back at step $(step)"
}
# in_network STEPS SHAPE...: three nodes and a coordinator in namespaces of their own, and how long the job is.
in_network() {
  have "$2"
  settings+=(--steps "$1")
  "$net" up "$network" 4 "${@:2}"
  start_cluster server-1 server-2 worker-1
}
begin() {
  start_job
  until_true 30 "the job does not begin" past 2
  say "step $(step)"
}
end() {
  "$net" rate "$network" none
  ends_as_alone
}
goes_on() {
  local from
  from=$(step)
  until_true 30 "the job does not go on" past $((from + 2))
  say "step $(step)"
}
commits_nothing() {  # commits_nothing SECONDS
  local before
  before=$(stat -c %s "$work/coordinator/jobs/$job/ledger")
  sleep "$1"
  [[ $(stat -c %s "$work/coordinator/jobs/$job/ledger") == "$before" ]] || fail "a minority commits steps"
  say "no step is committed"
}

case $about in
  slow)
    in_network 25 --delay 20ms --jitter 5ms --loss 1%
    start_job
    until_true 60 "the job does not begin" past 0
    grep -q "lane to server-2: tensors in TLS 1.3 over 4 sockets" "$work/server-1.log" ||
      fail "one socket for a way as long as this"
    ends_as_alone
    ;;
  capped)
    in_network 120 --rate 1gbit
    begin
    "$net" rate "$network" 10mbit
    say "10 Mb/s from step $(step)"
    sleep 1
    goes_on
    end
    ;;
  worker | server)
    in_network 60 --rate 100mbit
    begin
    victim=$about-1
    say "cut off $victim"
    "$net" cut "$network" "${places[$victim]}"
    noticed "$victim"
    goes_on
    "$net" heal "$network" "${places[$victim]}"
    back "$victim"
    end
    ;;
  minority)
    in_network 60 --rate 100mbit
    begin
    say "cut off the coordinator"
    "$net" cut "$network" 0
    until_true 15 "the job does not wait" grep -q "waits for" "$work/coordinator/jobs/$job/log.txt"
    for node in "${nodes[@]}"; do noticed "$node"; done
    commits_nothing 2
    "$net" heal "$network"
    goes_on
    end
    ;;
  apart)
    in_network 60 --rate 100mbit
    begin
    say "server-1 and server-2 cannot reach each other"
    "$net" apart "$network" "${places[server-1]}" "${places[server-2]}"
    until_true 20 "nobody notices" job_says "cannot reach each other"
    until_true 20 "no node is named" named "cannot reach each other"
    goes_on
    "$net" heal "$network"
    end
    ;;
  stopped)
    in_network 60 --rate 100mbit
    begin
    say "stop server-2"
    kill -STOP "${pids[server-2]}"
    noticed server-2
    goes_on
    kill -CONT "${pids[server-2]}"
    back server-2
    end
    ;;
  frozen)
    in_network 60 --rate 100mbit
    begin
    say "stop the coordinator"
    kill -STOP "${pids[coordinator]}"
    sleep 7
    kill -CONT "${pids[coordinator]}"
    goes_on
    end
    ;;
  full)
    network=
    [[ $EUID == 0 ]] || skip root
    settings+=(--steps 500 --checkpoint-every 25)
    small_disk coordinator 110m
    small_disk server-2 1500k
    start_cluster server-1 server-2 worker-1
    begin
    until_true 20 "the node's disk is not named" named "server-2: not used for now: .*No space left"
    say "$(ask status | grep 'server-2: ')"
    say "fill the coordinator's disk"
    dd if=/dev/zero of="$work/coordinator/fill" bs=64k 2>/dev/null
    until_true 30 "the coordinator's disk is not named" job_notes "checkpoint was not written: .* are free"
    goes_on
    rm "$work/coordinator/fill"
    ends_as_alone
    ;;
  slow-disk)
    network=
    preload=$(machine) || skip preload
    settings+=(--steps 120 --checkpoint-every 100)
    coordinator_env=(LD_PRELOAD="$preload" MACHINE_SLOW=/checkpoints/:2)
    start_cluster server-1 server-2
    begin
    until_true 60 "the disk is not named" job_notes "is slow or stuck"
    say "$(ask jobs show "$job" | grep stuck)"
    ends_as_alone
    ;;
  clock)
    network=
    preload=$(machine) || skip preload
    settings+=(--steps 400)
    node_env=(LD_PRELOAD="$preload" MACHINE_SKEW=60)
    start_cluster server-1 server-2
    node_env=(LD_PRELOAD="$preload" MACHINE_SKEW=-10000)
    start worker-behind
    until_true 20 "the refused node does not say why" grep -qs "set the clocks" "$work/worker-behind.log"
    unset "pids[worker-behind]"
    until_true 20 "the clock is not named" named "its clock is 60 s ahead"
    begin
    say "set the coordinator's clock back"
    kill -9 "${pids[coordinator]}"
    wait "${pids[coordinator]}" 2>/dev/null
    coordinator_env=(LD_PRELOAD="$preload" MACHINE_SKEW=-3000)
    start coordinator
    goes_on
    until_true 20 "the coordinator's clock is not named" named clock_note
    ends_as_alone
    ;;
  *)
    sed -n '2,21s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
say "$about: ok"
