#!/usr/bin/env bash
# A network of namespaces on this machine, for tests and bench/cluster. Needs root, ip and tc.
#
#   net.sh can [--rate] [--delay]      fails, with one word that says what is missing, where it cannot be
#   net.sh up NAME PLACES [--rate 1gbit] [--delay 20ms] [--jitter 5ms] [--loss 1%]
#   net.sh down NAME
#   net.sh rate NAME RATE|none         of every link, both ways, from now on
#   net.sh cut NAME PLACE              not a packet in or out any more, nor a word that it is so
#   net.sh heal NAME [PLACE]           undoes cut and apart
#   net.sh apart NAME PLACE...         these cannot reach each other, but all others
#
# Place I (from 0) is the namespace NAME-I with the address 10.213.77.(I+1) on its eth0. Delay and loss
# are netem's where the kernel has it. Elsewhere a program of ours, netns_wire, carries the packets
# between TUN devices (FASTSERVE_WIRE names it); the places of such a network cannot be cut off.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wire=${FASTSERVE_WIRE:-$here/../../build/release/tests/netns_wire}

inside() { ip netns exec "$1-$2" "${@:3}"; }
outer() { echo "$1-$2o"; }  # an interface's name has 15 characters at most
places() { { ls /var/run/netns 2>/dev/null || true; } | grep "^$1-[0-9]*$" | sort -V; }

shape() {  # shape NAME PLACE RATE: both ends of a link
  local outer limit="root handle 1: tbf rate $3 burst 256kb latency 50ms" change=replace
  outer=$(outer "$1" "$2")
  [[ $3 != none ]] || change=del limit=root
  ! [[ -e /sys/class/net/$outer ]] || tc qdisc "$change" dev "$outer" $limit
  inside "$1" "$2" tc qdisc "$change" dev eth0 $limit
}

up() {
  local name=$1 count=$2 rate= delay= jitter=0ms loss=0% i
  shift 2
  while (($#)); do
    case $1 in
      --rate) rate=$2 ;; --delay) delay=$2 ;; --jitter) jitter=$2 ;; --loss) loss=$2 ;;
      *) echo "what is $1?" >&2; exit 2 ;;
    esac
    shift 2
  done
  down "$name"
  for ((i = 0; i < count; i++)); do
    ip netns add "$name-$i"
    ip -n "$name-$i" link set lo up
  done
  if [[ $delay ]] && ! has_netem; then
    "$wire" "$name" "$count" "${delay%ms}" "${jitter%ms}" "${loss%\%}" >"/tmp/$name.wire" &
    until grep -qs carries "/tmp/$name.wire"; do
      kill -0 $! 2>/dev/null || { echo "$wire does not run" >&2; exit 1; }
      sleep 0.05
    done
    delay=
  else
    ip link add "$name" type bridge
    ip link set "$name" up
    for ((i = 0; i < count; i++)); do
      ip link add "$(outer "$name" "$i")" type veth peer name eth0 netns "$name-$i"
      ip link set "$(outer "$name" "$i")" master "$name" up
    done
  fi
  for ((i = 0; i < count; i++)); do
    ip -n "$name-$i" addr add "10.213.77.$((i + 1))/24" dev eth0
    ip -n "$name-$i" link set eth0 up
    [[ ! $rate ]] || shape "$name" "$i" "$rate"
    [[ ! $delay ]] || inside "$name" "$i" tc qdisc add dev eth0 ${rate:+parent 1:} ${rate:-root} \
      netem delay "$delay" "$jitter" loss "$loss"
  done
}

down() {
  local place
  if [[ -e /tmp/$1.wire ]]; then
    kill "$(head -1 "/tmp/$1.wire")" 2>/dev/null || true
    rm "/tmp/$1.wire"
  fi
  for place in $(places "$1"); do
    ip link del "${place}o" 2>/dev/null || true
    ip netns del "$place"
  done
  ip link del "$1" 2>/dev/null || true
}

has_netem() {
  ip netns add fsprobe$$ && ip -n fsprobe$$ link add fsprobe type veth peer name fsprobe1
  ip netns exec fsprobe$$ tc qdisc add dev fsprobe root netem delay 1ms 2>/dev/null
  local known=$?
  ip netns del fsprobe$$
  return $known
}

can() {
  local what name=fsp$$
  no() { echo "$1"; exit 1; }
  ((EUID == 0)) || no root
  for what in ip tc; do command -v $what >/dev/null || no iproute2; done
  ip netns add "$name" 2>/dev/null && ip netns exec "$name" true 2>/dev/null || no namespaces
  ip netns del "$name"
  ip link add "$name" type bridge 2>/dev/null || no bridge
  ip link del "$name"
  ip link add "$name" type veth peer name "${name}o" 2>/dev/null || no veth
  local shaped=0
  tc qdisc add dev "$name" root tbf rate 1gbit burst 256kb latency 50ms 2>/dev/null || shaped=1
  ip link del "$name"
  for what in "$@"; do
    if [[ $what == --rate ]] && ((shaped)); then no tbf; fi
    if [[ $what == --delay ]] && ! has_netem && ! [[ -x $wire && -w /dev/net/tun ]]; then no netem; fi
  done
}

cut() { ip link set "$(outer "$1" "$2")" nomaster; }

heal() {
  local place
  for place in ${2:+$1-$2} ${2:-$(places "$1")}; do
    [[ $place == "$1"-* ]] || continue
    ip link set "${place}o" master "$1" up
    ip link set "${place}o" type bridge_slave isolated off
  done
}

apart() {
  local place
  for place in "${@:2}"; do ip link set "$(outer "$1" "$place")" type bridge_slave isolated on; done
}

rate() {
  local place
  for place in $(places "$1"); do shape "$1" "${place##*-}" "$2"; done
}

case ${1:-} in
  can | up | down | rate | cut | heal | apart) "$@" ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
