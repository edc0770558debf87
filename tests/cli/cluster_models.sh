#!/usr/bin/env bash
# cluster_models.sh FSCTL SOURCE_DIR: the whole main job from a client that has a coordinator's address and a token
# and nothing else: train, deploy, generate, compress, deploy what came of it; nodes are killed and drained meanwhile.
source "$(dirname "$0")/cluster_session.sh"
data="$source_dir/data/tinyshakespeare"

export FASTSERVE_HOME="$scratch/head"
"$fsctl" cluster init --json >"$scratch/made" || give_up "init"
join="$(json "$scratch/made" join_token)" admin="$(json "$scratch/made" admin_token)"
start_coordinator() {
  rm -f "$scratch/endpoint"
  FASTSERVE_HOME="$scratch/head" "$fsctl" cluster start --port "$1" --endpoint-file "$scratch/endpoint" >>"$scratch/head.log" 2>&1 &
  pids[head]=$!
  for _ in $(seq 200); do [ -s "$scratch/endpoint" ] && break; sleep 0.05; done
  at="$(cat "$scratch/endpoint")"
}
start_coordinator 0
reader="$("$fsctl" cluster token create --kind read)" runner="$("$fsctl" cluster token create --kind run)"
# start_node NAME ROLES
start_node() {
  FASTSERVE_HOME="$scratch/$1" "$fsctl" --lanes 1 node start --join "$at" --token "$join" --name "$1" --roles "$2" >>"$scratch/$1.log" 2>&1 &
  pids[$1]=$!
}
start_node worker trainer,parameter-server
start_node serve-1 server

# From here on: a client without a store, with a token that may run jobs.
export FASTSERVE_HOME="$scratch/client" FASTSERVE_TOKEN="$runner"
c=("$fsctl" -q --cluster "$at")
ready() { [ "$("${c[@]}" node list | grep -c " ready ")" = "$1" ]; }
until_true "the nodes do not come" ready 2
"${c[@]}" train --data "$data" --preset tiny --steps 12 --model poems >"$scratch/out" || give_up "train"

# What is stored.
"${c[@]}" models list | grep -q "^poems@1 \*" || problem "models list"
"${c[@]}" models show poems --json >"$scratch/show.json" || problem "models show"
[ "$(json "$scratch/show.json" made_by)" = train ] || problem "models show --json"
"${c[@]}" models tag poems@1 best >/dev/null && "${c[@]}" models show poems@best | grep -q "tag  *best" || problem "models tag"
"${c[@]}" models use poems@1 | grep -q "points to poems@1" || problem "models use"
"${c[@]}" models verify poems | grep -q "poems is whole" || problem "models verify"
"${c[@]}" models untag poems best >/dev/null || problem "models untag"
must_fail 11 "role admin" "${c[@]}" models rename poems verses
must_fail 11 "role admin" "${c[@]}" models rm poems
must_fail 12 "poems" "${c[@]}" models show poem
must_fail 12 "did you mean\|there" "${c[@]}" models show verses

# Deployed on the node that can, asked through the coordinator.
must_fail 12 "is deployed nowhere" "${c[@]}" generate --model poems --prompt "First" --max-tokens 4
must_fail 12 "no model of this name" "${c[@]}" deploy verses
must_fail 12 "is no node of this cluster" "${c[@]}" deploy poems --node nobody
must_fail 11 "has not the role server" "${c[@]}" deploy poems --node worker
"${c[@]}" deploy poems --json >"$scratch/deployed.json" || give_up "deploy"
job="$(json "$scratch/deployed.json" job)"
[ "$(json "$scratch/deployed.json" node)" = serve-1 ] || problem "deploy does not say the node"
[ "$(json "$scratch/deployed.json" address)" = 127.0.0.1 ] || problem "a node serves beyond loopback unasked"
port="$(json "$scratch/deployed.json" port)"
ask() { "${c[@]}" generate --model "$1" --prompt "First Citizen" --max-tokens 12 --temperature 0; }
answer="$(ask poems)" || give_up "generate"
[ -n "$answer" ] || problem "generate says nothing"
[ "$(ask poems@1)" = "$answer" ] || problem "generate by version"
[ "$("$fsctl" -q generate --connect "127.0.0.1:$port" --prompt "First Citizen" --max-tokens 12 --temperature 0)" = "$answer" ] || problem "the node's own port answers otherwise"
printf 'hello\n\n' | "${c[@]}" chat poems --max-tokens 4 --json >"$scratch/chat" || problem "chat"
grep -q generated_tokens "$scratch/chat" || problem "chat answers nothing"
"${c[@]}" jobs list | grep -q "^$job  *deploy  *poems@1  *running .*serves on node serve-1" || problem "jobs list: $("${c[@]}" jobs list)"
"${c[@]}" jobs show "$job" | grep -q '"serving": true' || problem "jobs show of a deployment"
"${c[@]}" jobs logs "$job" | grep -q "given to node serve-1" || problem "jobs logs of a deployment"
"${c[@]}" jobs follow "$job" | grep -q "serving poems@1 on node serve-1" || problem "jobs follow of a deployment"
must_fail 15 "is for training" "${c[@]}" jobs pause "$job"
must_fail 11 "role run" "$fsctl" --cluster "$at" --token "$reader" generate poems --prompt a
must_fail 11 "role run" "$fsctl" --cluster "$at" --token "$reader" deploy poems
"$fsctl" --cluster "$at" --token "$reader" models list >/dev/null || problem "a reader may not list models"

# The node dies and comes back: it serves again, and fetches nothing twice. So does the coordinator.
kill -KILL "${pids[serve-1]}"
wait "${pids[serve-1]}" 2>/dev/null
until_true "a dead node goes unnoticed" eval '"${c[@]}" jobs show "$job" | grep -q "does not answer\|is gone"'
must_fail 17 "is deployed and does not answer" "${c[@]}" generate poems --prompt "First" --max-tokens 4
start_node serve-1 server
until_true "a node that comes back does not serve again" eval '[ "$(ask poems)" = "$answer" ]'
kill -KILL "${pids[head]}"
wait "${pids[head]}" 2>/dev/null
start_coordinator "${at##*:}"
until_true "a coordinator that comes back does not know its deployments" eval '[ "$(ask poems)" = "$answer" ]'
[ "$(grep -c "serving poems@1 at" "$scratch/serve-1.log")" = 2 ] || problem "the coordinator's restart ended a deployment"

# Compressed by the coordinator itself while no node has the role, and by one that has.
"${c[@]}" compress poems --weights int8 --name poems-int8 --json >"$scratch/int8.json" || give_up "compress"
[ "$(json "$scratch/int8.json" model)" = poems-int8@1 ] || problem "compress --json"
start_node press compressor
until_true "the compressor does not come" ready 3
"${c[@]}" compress poems --weights int8-g128 --name poems-press --max-perplexity-increase 0.5 >"$scratch/pressed" || give_up "compress on a node"
grep -q "^poems-press@1" "$scratch/pressed" && grep -q "perplexity" "$scratch/pressed" || problem "compress in words"
"${c[@]}" jobs list | grep "compress .*poems-press@1 .*finished" | grep -q "made by press" || problem "not compressed by the node: $("${c[@]}" jobs list)"
"${c[@]}" models show poems-press | grep -q "from  *poems@1 (train)" || problem "a compressed model has lost its lineage"
must_fail 20 "perplexity" "${c[@]}" compress poems --weights int4-g128 --name refused --max-perplexity 0.001
grep -qi "perplexity.*0.001\|0.001" "$scratch/err" || problem "a broken bound comes back without its figures: $(cat "$scratch/err")"
"${c[@]}" models list | grep -q refused && problem "a refused compression is stored"
must_fail 15 "quantised already" "${c[@]}" compress poems-int8
detached="$("${c[@]}" compress poems --weights int8 --name cancelled --detach)"
"${c[@]}" jobs cancel "${detached#job }" | grep -q cancelled || problem "jobs cancel of a compression"

# What was compressed is served like anything else; ended, it answers no more.
"${c[@]}" deploy poems-press >"$scratch/out" || give_up "deploy of a compressed model: $(cat "$scratch/out")"
grep -q "serving poems-press@1 on node serve-1" "$scratch/out" || problem "deploy in words"
[ -n "$(ask poems-press)" ] || problem "a compressed model answers nothing"
second="$("${c[@]}" jobs list | awk '/poems-press@1 .*running/ { print $1; exit }')"
"${c[@]}" jobs cancel "$second" | grep -q cancelled || problem "jobs cancel of a deployment"
must_fail 12 "is deployed nowhere.*\|deployed are: poems@1" "${c[@]}" generate poems-press --prompt a

# Draining moves it.
start_node serve-2 server
until_true "the second server does not come" ready 4
export FASTSERVE_TOKEN="$admin"
"${c[@]}" node drain serve-1 >/dev/null || problem "drain"
until_true "draining does not move a deployment" eval '"${c[@]}" jobs show "$job" | grep -q "serves on node serve-2"'
[ "$(ask poems)" = "$answer" ] || problem "another node answers otherwise"
"${c[@]}" jobs logs "$job" | grep -q "node serve-1 is being drained" || problem "the log does not tell of draining"

# Whole models out of the cluster and into it.
"${c[@]}" models export poems "$scratch/out-hf" >/dev/null || give_up "export"
[ -s "$scratch/out-hf/model.safetensors" ] && [ -s "$scratch/out-hf/tokenizer.json" ] || problem "export lacks files"
[ "$("${c[@]}" models import "$scratch/out-hf" --name again)" = again@1 ] || problem "import"
"${c[@]}" models verify again >/dev/null || problem "what was imported is not whole"
"${c[@]}" deploy again --node serve-2 >/dev/null && [ "$(ask again)" = "$answer" ] || problem "what went out and in answers otherwise"
must_fail 12 "no model of this name" "${c[@]}" models export nothing "$scratch/none"
must_fail 11 "is not a model name" "${c[@]}" models import "$scratch/out-hf" --name "two words"
[ -z "$(ls -A "$scratch/client" 2>/dev/null)" ] || problem "a client leaves files: $(ls -A "$scratch/client")"

# A job that has ended can be forgotten, with all its files; one that has not cannot.
must_fail 17 "is running" "${c[@]}" jobs rm "$job"
"${c[@]}" jobs rm "$second" | grep -q "removed job $second" || problem "jobs rm of a deployment"
trained="$("${c[@]}" jobs list | awk '$2 == "train" { print $1; exit }')"
[ -d "$scratch/head/jobs/$trained" ] || problem "the training job $trained has no folder"
"${c[@]}" jobs rm "$trained" >/dev/null || problem "jobs rm of a training job"
[ -e "$scratch/head/jobs/$trained" ] && problem "jobs rm leaves files"
"${c[@]}" jobs list | grep -q "$second\|$trained" && problem "a removed job is listed"
must_fail 12 "no such job" "${c[@]}" jobs rm "$trained"

# Renamed and removed.
"${c[@]}" models rename again verses | grep -q "is now verses" || problem "models rename"
"${c[@]}" models rm poems-int8 | grep -q "removed poems-int8" || problem "models rm"
"${c[@]}" models list | grep -q poems-int8 && problem "a removed model is listed"
finish
