#!/usr/bin/env bash
# cluster_compress.sh FSCTL SOURCE_DIR: the node that compresses is killed in the middle. Another one does it, the
# model is stored once, and it measures as the one that an undisturbed compression makes.
source "$(dirname "$0")/cluster_session.sh"

export FASTSERVE_HOME="$scratch/head"
"$fsctl" -q train --data "$source_dir/data/tinyshakespeare" --preset tiny --steps 5 --model poems >/dev/null || give_up "train"
"$fsctl" cluster init --json >"$scratch/made" || give_up "init"
join="$(json "$scratch/made" join_token)" admin="$(json "$scratch/made" admin_token)"
"$fsctl" cluster start --port 0 --endpoint-file "$scratch/endpoint" >"$scratch/head.log" 2>&1 &
pids[head]=$!
for _ in $(seq 200); do [ -s "$scratch/endpoint" ] && break; sleep 0.05; done
c=("$fsctl" -q --token "$admin" --cluster "$(cat "$scratch/endpoint")")
for name in press-1 press-2; do
  FASTSERVE_HOME="$scratch/$name" "$fsctl" --lanes 1 node start --join "$(cat "$scratch/endpoint")" --token "$join" \
    --name $name --roles compressor >"$scratch/$name.log" 2>&1 &
  pids[$name]=$!
done
ready() { [ "$("${c[@]}" node list | grep -c " ready ")" = 2 ]; }
until_true "the nodes do not come" ready

settings=(--weights int4-g128 --max-perplexity-increase 1000)  # measured before and after
"${c[@]}" compress poems "${settings[@]}" --name calm >/dev/null || give_up "compress"
measured() { "${c[@]}" models show "$1" --json | grep -o '"perplexity": *[0-9.e+-]*'; }  # before and after

# Stopped as soon as it is at work; one that was too quick counts for nothing.
field() { "${c[@]}" jobs show "$job" --json | grep -o "\"$1\": *\"[^\"]*\"" | head -1 | cut -d'"' -f4; }
for attempt in 1 2 3 4 5; do
  job="$("${c[@]}" compress poems "${settings[@]}" --name "struck-$attempt" --detach)" || give_up "compress --detach"
  job="${job#job }"
  victim=
  for _ in $(seq 500); do
    [ "$(field state)" = running ] && victim="$(field node)" && break
    [ "$(field state)" = finished ] && break
  done
  [ -n "$victim" ] && kill -STOP "${pids[$victim]}" || continue
  sleep 1  # what it said last has come
  [ "$(field state)" = finished ] || break
  kill -CONT "${pids[$victim]}"
  victim=
done
[ -n "$victim" ] || give_up "no compression was slow enough to be struck"
kill -KILL "${pids[$victim]}"
wait "${pids[$victim]}" 2>/dev/null
until_true "nobody takes the compression up" eval '[ "$(field state)" = finished ]'
"${c[@]}" jobs logs "$job" | grep -q "node $victim was lost" || problem "the log does not tell: $("${c[@]}" jobs logs "$job")"
[ "$("${c[@]}" models list | grep -c "^struck-$attempt@")" = 1 ] || problem "stored twice, or not at all"
[ "$(measured "struck-$attempt")" = "$(measured calm)" ] && [ -n "$(measured calm)" ] || problem "another model than undisturbed"
"${c[@]}" models verify "struck-$attempt" >/dev/null || problem "what was stored is not whole"
finish
