#!/usr/bin/env bash
# A cluster's life as its operator sees it: real processes on loopback, each with a folder of its own.
source "$(dirname "$0")/../cli/session.sh"
head="$scratch/head"
export FASTSERVE_HOME="$head"
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN FASTSERVE_JOIN_TOKEN
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait; rm -rf "$scratch"' EXIT

start_coordinator() {
  rm -f "$scratch/endpoint"
  "$fsctl" cluster start "$@" --endpoint-file "$scratch/endpoint" >"$scratch/head.log" 2>&1 &
  coordinator=$!
  pids+=("$coordinator")
  for _ in $(seq 200); do
    [ -s "$scratch/endpoint" ] && break
    kill -0 "$coordinator" 2>/dev/null || break
    sleep 0.05
  done
  [ -s "$scratch/endpoint" ] || { cat "$scratch/head.log"; problem "the coordinator did not start"; finish; exit 1; }
  endpoint="$(cat "$scratch/endpoint")"
}
stop() { kill -TERM "$1"; wait "$1"; }
# start_node NAME WORDS...: in a folder of its own; sets $node.
start_node() {
  local name="$1"
  shift
  "$fsctl" --store "$scratch/$name" --lanes 1 node start "$@" >"$scratch/$name.log" 2>&1 &
  node=$!
  pids+=("$node")
}
# until_listed STATE NAME: `node list` shows the node in that state, within ten seconds.
until_listed() {
  for _ in $(seq 100); do
    "$fsctl" --cluster "$endpoint" node list 2>/dev/null | grep -q "^$2 *$1 " && return 0
    sleep 0.1
  done
  problem "$2 is not $1: $("$fsctl" --cluster "$endpoint" node list 2>&1; tail -n 3 "$scratch/$2.log"; tail -n 3 "$scratch/head.log")"
}

# Before there is a cluster every command says what makes one.
must_fail 12 "fsctl cluster init" "$fsctl" cluster start
must_fail 12 "fsctl cluster init" "$fsctl" cluster token create --kind join
must_fail 12 "fsctl cluster init" "$fsctl" cluster token list
must_fail 11 "host name" "$fsctl" cluster init --address "two words"
must_fail 2 "--port" "$fsctl" cluster init --port 0
[ -e "$head" ] && problem "a refused init leaves a folder"
"$fsctl" cluster init --json >"$scratch/made" || problem "init"
join="$(json "$scratch/made" join_token)" admin="$(json "$scratch/made" admin_token)"
must_fail 13 "holds a cluster" "$fsctl" cluster init
must_fail 2 "join,read,run,admin" "$fsctl" cluster token create --kind root
must_fail 11 "as 24h" "$fsctl" cluster token create --kind join --lifetime 1w
must_fail 11 "ten years" "$fsctl" cluster token create --kind join --lifetime 9999d

# While no coordinator runs, tokens are made in the folder; then through the one that runs.
"$fsctl" cluster token create --kind read --label "a reader" >"$scratch/reader" || problem "token create"
start_coordinator --port 0
must_fail 17 "one coordinator at a time" "$fsctl" cluster start
"$fsctl" cluster token create --kind run --label "a runner" --lifetime 1h >"$scratch/runner" || problem "create beside"
"$fsctl" cluster token list >"$scratch/tokens"
grep -q "read .*a reader" "$scratch/tokens" && grep -q "run .*a runner" "$scratch/tokens" || problem "$(cat "$scratch/tokens")"
grep -q "$(tail -c 33 "$scratch/reader")" "$scratch/tokens" && problem "a list shows secrets"
reader() { "$fsctl" --cluster "$endpoint" --token "$(cat "$scratch/reader")" "$@"; }
reader node list >/dev/null || problem "a reader may not look"
must_fail 11 "admin" "$fsctl" --cluster "$endpoint" --token "$(cat "$scratch/runner")" node remove a
"$fsctl" --cluster "$endpoint" --token "$admin" status | grep -q "nodes" || problem "status"

# Tokens are listed and revoked while the coordinator runs, from anywhere, by an admin.
tokens() { "$fsctl" --cluster "$endpoint" --token "$admin" cluster token "$@"; }
diff "$scratch/tokens" <(tokens list) >&2 || problem "another list over the network"
must_fail 11 "admin" "$fsctl" --cluster "$endpoint" --token "$(cat "$scratch/runner")" cluster token list
tokens revoke "$(awk '/a runner/ { print $1 }' "$scratch/tokens")" >/dev/null || problem "revoke over the network"
tokens list | grep -q "a runner" && problem "a revoked token is listed"
must_fail 11 "revoked" "$fsctl" --cluster "$endpoint" --token "$(cat "$scratch/runner")" status
must_fail 12 "token list" "$fsctl" --cluster "$endpoint" --token "$admin" cluster token revoke 00000000
must_fail 11 "another cluster\|not of the cluster" "$fsctl" --cluster "$endpoint" --token "fsa1-$(printf '0%.0s' $(seq 64))-$(printf '0%.0s' $(seq 32))" status

# Nodes: one joins, another by its name is refused, one without a token, one with a wrong one.
start_node a --join "$endpoint" --token "$join" --name a
first=$node
until_listed ready a
must_fail 13 "another --name" "$fsctl" --store "$scratch/b" node start --join "$endpoint" --token "$join" --name a
must_fail 11 "has not joined" "$fsctl" --store "$scratch/c" node start
must_fail 11 "not known here" "$fsctl" --store "$scratch/c" node start --join "$endpoint" --token "${join%????}0000" --name c
must_fail 11 "lets no node join" "$fsctl" --store "$scratch/c" node start --join "$endpoint" --token "$admin" --name c
must_fail 17 "a node runs from this folder" "$fsctl" --store "$scratch/a" node start

# Draining is remembered by the next coordinator; the node finds it again by itself.
"$fsctl" --cluster "$endpoint" node drain a >/dev/null || problem "drain"
until_listed draining a
kill -KILL "$coordinator"
wait "$coordinator" 2>/dev/null
start_coordinator --port "${endpoint##*:}"
until_listed draining a
"$fsctl" --cluster "$endpoint" node undrain a >/dev/null || problem "undrain"
until_listed ready a

# A node that starts again needs no token; an old one in its settings does no harm.
stop "$first"
start_node a
until_listed ready a
stop "$node"
stop "$coordinator"
for id in $("$fsctl" cluster token list | grep ' join ' | cut -d' ' -f1); do
  "$fsctl" cluster token revoke "$id" >/dev/null || problem "revoke $id"
done
must_fail 12 "token list" "$fsctl" cluster token revoke 00000000
start_coordinator --port "${endpoint##*:}"
must_fail 11 "revoked" "$fsctl" --store "$scratch/d" node start --join "$endpoint" --token "$join" --name d
start_node a --join "$endpoint" --token "$join" --name a
until_listed ready a

# A removed node is cut off, and let in no more however often it tries.
"$fsctl" --cluster "$endpoint" node remove a >/dev/null || problem "remove"
sleep 2
"$fsctl" --cluster "$endpoint" node list | grep -q "^a " && problem "a removed node is listed"
kill -TERM "$node" 2>/dev/null
wait "$node" 2>/dev/null

stop "$coordinator" || problem "the coordinator ends in $?"
[ -e "$head/cluster/running.json" ] && problem "a coordinator that has ended says that it runs"
finish
