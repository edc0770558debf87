#!/usr/bin/env bash
# node_cards.sh FSCTL SOURCE_DIR: a cluster's node with two (emulated) GPUs. A job has a trainer on each, in the bits of
# one process; what the node serves takes one of them for each model.
source "$(dirname "$0")/cluster_session.sh"

export FASTSERVE_HOME="$scratch/head"
"$fsctl" -q models import "$source_dir/tests/data/reference/models/gpt2-tiny" --name seed >/dev/null || give_up "import"
mkdir "$scratch/text" && head -c 3000 "$source_dir/data/tinyshakespeare/input.txt" >"$scratch/text/some.txt"
train=(train --data "$scratch/text" --from seed --steps 3 --block 16 --batch-size 4 --microbatches 4
       --evaluate-sequences 2 --learning-rate 1e-3 --json)
"$fsctl" "${train[@]}" --device emulated --optimiser host --model alone >"$scratch/alone.json" 2>"$scratch/alone.log" ||
  give_up "training in one process"

"$fsctl" cluster init --json >"$scratch/made" || give_up "init"
join="$(json "$scratch/made" join_token)" admin="$(json "$scratch/made" admin_token)"
"$fsctl" cluster start --port 0 --endpoint-file "$scratch/endpoint" >"$scratch/head.log" 2>&1 &
pids[head]=$!
for _ in $(seq 200); do [ -s "$scratch/endpoint" ] && break; sleep 0.05; done
c=("$fsctl" --token "$admin" --cluster "$(cat "$scratch/endpoint")")
FASTSERVE_HOME="$scratch/node" "$fsctl" --lanes 1 --device emulated:2x node start --join "$(cat "$scratch/endpoint")" \
  --token "$join" --name both --roles trainer,parameter-server,server >"$scratch/node.log" 2>&1 &
pids[node]=$!
until_true "the node does not come" eval '"${c[@]}" -q node list | grep -q " ready "'
"${c[@]}" -q node list --json | grep -q '"device": "2 x gpu ' ||
  problem "the list does not say that there are two: $("${c[@]}" -q node list --json)"
grep -q "^.*device 2 x gpu " "$scratch/node.log" || problem "nor does the node's log"

"${c[@]}" "${train[@]}" --model together >"$scratch/together.json" 2>"$scratch/together.log" ||
  give_up "training on the node: $(tail -3 "$scratch/together.log")"
want="$(json "$scratch/alone.json" weights_hash)"
[ -n "$want" ] && [ "$(json "$scratch/together.json" weights_hash)" = "$want" ] || problem "a node's two cards change bits"
grep -q "2 trainers, each on gpu " "$scratch/node.log" || problem "the log does not tell who works: $(cat "$scratch/node.log")"

for model in seed together; do
  "${c[@]}" -q deploy $model --context-tokens 64 --detach >"$scratch/deploy.log" 2>&1 ||
    problem "deploying $model: $(tail -3 "$scratch/deploy.log")"
done
for model in seed together; do
  until_true "$model is not served" eval '"${c[@]}" -q generate $model --prompt "First" --max-tokens 2'
done
[ "$(grep -c "^device gpu " "$scratch/node.log")" = 2 ] || problem "a model is not served by one card"
"$fsctl" node start --help | grep -q "cuda:all" || problem "the command's help does not tell of several cards"
finish
