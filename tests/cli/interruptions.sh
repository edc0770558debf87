#!/usr/bin/env bash
# A job that is stopped by Ctrl-C or killed ends, resumed, in the bits of one that never was.
source "$(dirname "$0")/session.sh"
train=("$fsctl" -q train --data "$source_dir/data/tinyshakespeare" --preset tiny --steps 120 --evaluate-every 40
       --evaluate-sequences 16 --checkpoint-every 10 --json)

"${train[@]}" --model calm --trainers 1 >"$scratch/calm.json" || problem "the undisturbed run"
want="$(json "$scratch/calm.json" weights_hash)"
[ -n "$want" ] || problem "no hash of the weights"

for signal in INT KILL; do
  "${train[@]}" --model "storm-${signal,,}" >"$scratch/storm.json" 2>"$scratch/storm.err" &
  job=$!
  for _ in $(seq 400); do  # until a checkpoint is there
    ls "$FASTSERVE_HOME"/jobs/*/checkpoints/step-* >/dev/null 2>&1 && break
    sleep 0.05
  done
  kill -"$signal" $job 2>/dev/null
  wait $job
  code=$?
  [ "$signal" = INT ] && { [ $code = 130 ] || [ $code = 0 ] || problem "Ctrl-C ended in $code: $(cat "$scratch/storm.err")"; }
  id="$("$fsctl" -q jobs list | awk -v m="storm-${signal,,}" '$3 == m { print $1 }')"
  [ -n "$id" ] || { problem "the interrupted job is not listed"; continue; }
  if [ $code != 0 ]; then
    "$fsctl" -q jobs resume "$id" --json >"$scratch/resumed.json" || problem "resume after $signal"
    [ "$(json "$scratch/resumed.json" weights_hash)" = "$want" ] ||
      problem "after $signal and resume the bits are $(json "$scratch/resumed.json" weights_hash), not $want"
  fi
  "$fsctl" -q jobs rm "$id" >/dev/null || problem "jobs rm"
done

# Killed while publishing: the store holds whole versions only, and opens.
"$fsctl" -q models export calm "$scratch/hf" >/dev/null || problem "export"
for delay in 0.02 0.05 0.08 0.12 0.2; do
  "$fsctl" -q models import "$scratch/hf" --name many >/dev/null 2>&1 &
  import=$!
  sleep $delay
  kill -KILL $import 2>/dev/null
  wait $import 2>/dev/null
  "$fsctl" -q models list >"$scratch/list" || problem "the store does not open after a kill at $delay s"
done
for version in $(awk '/^many@/ { print $1 }' "$scratch/list"); do
  "$fsctl" -q models verify "$version" >/dev/null || problem "$version is not whole"
done
finish
