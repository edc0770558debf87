#!/usr/bin/env bash
# cluster_client.sh FSCTL SOURCE_DIR STANDIN: every command that a cluster can do, over TLS, and what is said of
# those it cannot.
source "$(dirname "$0")/session.sh"
standin="$3"
unset FASTSERVE_CLUSTER FASTSERVE_TOKEN
mkfifo "$scratch/hold"
"$standin" "$scratch" <"$scratch/hold" &
exec 8>"$scratch/hold" # closed with this shell: then the stand-in ends, too
for _ in $(seq 600); do [ -s "$scratch/endpoint" ] && break; sleep 0.05; done
at="$(cat "$scratch/endpoint")"
export FASTSERVE_TOKEN="$(cat "$scratch/admin")"
c=("$fsctl" -q --cluster "$at")

# What it shows.
"${c[@]}" status --json >"$scratch/status.json" || problem "status"
grep -q '"cluster": "c0ffee"' "$scratch/status.json" || problem "status does not show the cluster"
"${c[@]}" status | grep -q "nodes   3 ready; 12 lanes ready" || problem "status in words"
FASTSERVE_CLUSTER="$at" "$fsctl" -q node list --json >"$scratch/nodes.json" || problem "node list"
[ "$(json "$scratch/nodes.json" name)" = fast ] || problem "node list --json"
"${c[@]}" node list | grep -q "^slow .*trainer,parameter-server" || problem "node list in words"
"${c[@]}" jobs list | grep -q "no jobs yet" || problem "jobs list of nothing"

# A job: submitted, followed, watched.
"${c[@]}" train --data texts --model poems --steps 50 --learning-rate 0.001 --json >"$scratch/train.json" || problem "train"
[ "$(json "$scratch/train.json" state)" = finished ] || problem "train did not follow its job to the end"
grep -q "\"data\": \"$PWD/texts\"" "$scratch/train.json" || problem "train sent a relative path"
grep -q '"learning_rate": 0.001' "$scratch/train.json" || problem "train lost a setting"
"$fsctl" --cluster "$at" train --data texts --model poems --steps 50 2>&1 | grep -q "job a1b2c3d4 of poems: finished at step 50/50" || problem "train in words"
"${c[@]}" train --data texts --model doomed --steps 20 >"$scratch/out"
[ $? = 1 ] || problem "a failed job should end train with 1"
grep -q "the loss is not finite" "$scratch/out" || problem "train does not say why the job failed"
[ "$("${c[@]}" train --data texts --model poems --steps 1000 --detach)" = "job a1b2c3d4" ] || problem "train --detach"
"${c[@]}" top --once --json >"$scratch/top.json" || problem "top"
grep -A40 '"name": "slow"' "$scratch/top.json" | grep -m1 straggler | grep -q true || problem "top does not see the straggler"
"${c[@]}" top --once | grep -Eq "^slow .*straggler" || problem "top in words"
"${c[@]}" top --interval 0.1 --json | head -3 >"$scratch/lines"
[ "$(wc -l <"$scratch/lines")" = 3 ] || problem "top --json is a document a line"

# Its commands.
"${c[@]}" jobs pause a1b2c3d4 | grep -q paused || problem "jobs pause"
"${c[@]}" jobs resume a1b2c3d4 | grep -q running || problem "jobs resume"
"${c[@]}" jobs show a1b2c3d4 --json >"$scratch/show.json" || problem "jobs show"
[ "$(json "$scratch/show.json" model)" = poems ] || problem "jobs show --json"
[ "$("${c[@]}" jobs logs a1b2c3d4 | tail -1)" = "line 2499" ] || problem "jobs logs: the last page is missing"
"${c[@]}" jobs audit a1b2c3d4 | grep -q "each sample counted once" || problem "jobs audit"
"${c[@]}" jobs follow a1b2c3d4 | grep -q finished || problem "jobs follow"
"${c[@]}" jobs list | grep -q "^a1b2c3d4 .*poems@1" || problem "jobs list"
must_fail 12 "no such job" "${c[@]}" jobs cancel 00000000
must_fail 12 "no such job" "${c[@]}" jobs follow 00000000
"${c[@]}" node drain slow --json | grep -q '"state": "draining"' || problem "node drain"
"${c[@]}" node list | grep -q "^slow  *draining" || problem "a drained node"
"${c[@]}" node undrain slow | grep -q "gets work again" || problem "node undrain"
"${c[@]}" node remove slow >/dev/null || problem "node remove"
must_fail 12 "no such node" "${c[@]}" node remove slow

# Models, and what this coordinator cannot do.
"${c[@]}" models list | grep -q "^poems@3 \*" || problem "models list"
"${c[@]}" models show poems --json >"$scratch/model.json" || problem "models show"
[ "$(json "$scratch/model.json" weight_format)" = bf16 ] || problem "models show --json"
"${c[@]}" models rm poems@3 | grep -q "removed poems@3, 2.0 KiB freed" || problem "models rm"
"${c[@]}" models tag poems@3 best | grep -q "poems@3 is tagged best" || problem "models tag"
must_fail 12 "no such model" "${c[@]}" models show verses
must_fail 12 "no such node" "${c[@]}" deploy poems
must_fail 12 "no such model" "${c[@]}" compress poems
must_fail 15 "update the coordinator" "${c[@]}" generate poems --prompt a
must_fail 15 "update the coordinator" "${c[@]}" models export poems "$scratch/hf"
must_fail 11 "needs a model" "${c[@]}" generate --prompt a
must_fail 11 "is for a cluster" "$fsctl" deploy poems --node a
must_fail 11 "is for a cluster" "$fsctl" compress poems --detach

# Ctrl-C leaves the job running, and says how to go on.
"$fsctl" --cluster "$at" train --data texts --model stubborn --json >"$scratch/out" 2>"$scratch/err" &
follower=$!
for _ in $(seq 600); do grep -q "is waiting" "$scratch/err" && break; grep -q "Ctrl-C stops following" "$scratch/err" && break; sleep 0.05; done
kill -INT $follower
wait $follower
[ $? = 130 ] || problem "Ctrl-C should end train with 130"
grep -q "fsctl jobs follow a1b2c3d4" "$scratch/err" || problem "Ctrl-C does not say how to follow"
"${c[@]}" jobs list | grep -q waiting || problem "Ctrl-C ended the job"

# A coordinator that is started again finds its follower there.
"$fsctl" --cluster "$at" jobs follow a1b2c3d4 >"$scratch/out" 2>"$scratch/err" &
follower=$!
for _ in $(seq 600); do grep -q "is waiting" "$scratch/err" && break; sleep 0.05; done
printf x >&8
for _ in $(seq 600); do grep -q "connecting again" "$scratch/err" && break; sleep 0.05; done
"${c[@]}" jobs resume a1b2c3d4 >/dev/null || problem "jobs resume of a job that waits"
wait $follower || problem "a follower did not outlive its coordinator: $(tail -2 "$scratch/err")"
grep -q "finished" "$scratch/out" || problem "a follower lost its job with its coordinator"

# Who may not, and what cannot be.
export FASTSERVE_TOKEN="$(cat "$scratch/read")"
"${c[@]}" jobs list >/dev/null || problem "a token to read does not read"
must_fail 11 "needs an access token of role admin" "${c[@]}" node drain fast
must_fail 11 "needs an access token of role run" "${c[@]}" train --data texts --model poems
must_fail 11 "not of the cluster" "${c[@]}" --token "fsa1-$(printf '0%.0s' $(seq 64))-$(printf '0%.0s' $(seq 32))" jobs list
must_fail 11 "no token" "${c[@]}" --token secret jobs list
unset FASTSERVE_TOKEN
must_fail 11 "needs an access token" "${c[@]}" jobs list
mkdir -p "$FASTSERVE_HOME/cluster" && cp "$scratch/admin" "$FASTSERVE_HOME/cluster/admin-token"
"${c[@]}" node drain fast >/dev/null || problem "the token in the store's folder is not used"
must_fail 11 "needs --cluster" "$fsctl" node list
must_fail 11 "needs --cluster" "$fsctl" top
must_fail 17 "fsctl cluster start" "$fsctl" --cluster 127.0.0.1:1 jobs list
must_fail 11 "HOST:PORT" "$fsctl" --cluster nowhere jobs list
must_fail 15 "not done by a cluster yet" "${c[@]}" devices
FASTSERVE_CLUSTER="$at" must_fail 15 "not done by a cluster yet" "$fsctl" devices
must_fail 12 "no such job" "${c[@]}" jobs rm 7f3a91c2
must_fail 11 "needs an access token of role admin" "${c[@]}" --token "$(cat "$scratch/read")" jobs rm a1b2c3d4
"${c[@]}" jobs rm a1b2c3d4 | grep -q "removed job a1b2c3d4" || problem "jobs rm"
must_fail 11 "about this machine" "${c[@]}" bench
FASTSERVE_CLUSTER="$at" "$fsctl" version >/dev/null || problem "version minds the environment"
FASTSERVE_CLUSTER="$at" "$fsctl" --cluster '' models list >/dev/null || problem "--cluster '' is not this machine"
for command in logs follow pause cancel; do
  must_fail 15 "is for jobs of a cluster" "$fsctl" jobs $command 7f3a91c2
done
must_fail 11 "is for jobs of a cluster" "$fsctl" train --data texts --model poems --detach
[ "$("$fsctl" complete -- node "")" = "$(printf '%s\n' drain list remove start undrain)" ] || problem "completion of node"
finish
