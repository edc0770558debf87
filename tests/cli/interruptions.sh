#!/usr/bin/env bash
# A job that is stopped by Ctrl-C, killed or out of disk ends, resumed, in the bits of one that never
# was; nothing is published twice or in part.
source "$(dirname "$0")/session.sh"
text="$scratch/text"
mkdir "$text" && cp "$source_dir/data/tinyshakespeare/input.txt" "$text/"
train=("$fsctl" -q train --data "$text" --preset tiny --steps 120 --evaluate-every 40
       --evaluate-sequences 16 --checkpoint-every 10 --json)

"${train[@]}" --model calm --trainers 1 >"$scratch/calm.json" || problem "the undisturbed run"
want="$(json "$scratch/calm.json" weights_hash)"
[ -n "$want" ] || problem "no hash of the weights"

job_of() { "$fsctl" -q jobs list | awk -v m="$1" '$3 == m { print $1 }'; }
same_bits() {  # same_bits FILE WORDS
  [ "$(json "$1" weights_hash)" = "$want" ] || problem "$2: the bits are $(json "$1" weights_hash), not $want"
}
# wait_for SECONDS COMMAND...: until the command succeeds
wait_for() {
  local tries=$(($1 * 50))
  shift
  for _ in $(seq "$tries"); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.02
  done
  return 1
}
some() { ls -d $1; }
"$fsctl" -q jobs rm "$(job_of calm)" >/dev/null || problem "jobs rm"

for signal in INT KILL; do
  "${train[@]}" --model "storm-${signal,,}" >"$scratch/storm.json" 2>"$scratch/storm.err" &
  job=$!
  wait_for 20 some "$FASTSERVE_HOME/jobs/*/checkpoints/step-*"
  kill -"$signal" $job 2>/dev/null
  wait $job
  code=$?
  [ "$signal" = INT ] && { [ $code = 130 ] || [ $code = 0 ] || problem "Ctrl-C ended in $code: $(cat "$scratch/storm.err")"; }
  id="$(job_of "storm-${signal,,}")"
  [ -n "$id" ] || { problem "the interrupted job is not listed"; continue; }
  if [ $code != 0 ]; then
    must_fail 11 "cannot change" "$fsctl" -q train --resume "$id" --batch-size 3
    "$fsctl" -q jobs resume "$id" --json >"$scratch/resumed.json" || problem "resume after $signal"
    same_bits "$scratch/resumed.json" "after $signal and resume"
    "$fsctl" -q jobs audit "$id" --json >"$scratch/audit.json" || problem "the audit after $signal"
    [ "$(json "$scratch/audit.json" incarnations)" = 2 ] || problem "the audit does not know of the resumption"
  fi
  "$fsctl" -q jobs rm "$id" >/dev/null || problem "jobs rm"
done

# Killed again and again at moments of their own, each time with other trainers and lanes.
"${train[@]}" --model often >"$scratch/often.json" 2>/dev/null &
job=$!
wait_for 20 some "$FASTSERVE_HOME/jobs/*/documents.json"
id="$(job_of often)"
for delay in 0.01 0.03 0.05 0.08 0.13 0.21; do
  sleep $delay
  kill -KILL $job 2>/dev/null
  wait $job 2>/dev/null
  trainers=$((RANDOM % 7 + 1))
  "$fsctl" -q --lanes $((RANDOM % 2 + 1)) jobs resume "$id" --trainers $trainers --json >"$scratch/often.json" 2>/dev/null &
  job=$!
done
wait $job || "$fsctl" -q jobs show "$id" | grep -q finished || problem "the job that was killed often does not end"
"$fsctl" -q jobs show "$id" --json >"$scratch/often.json"
grep -q "\"weights_hash\": \"$want\"" "$scratch/often.json" || problem "killed often, the bits are others"
"$fsctl" -q jobs audit "$id" | grep -q "each sample counted once" || problem "the audit of a job that was killed often"
"$fsctl" -q jobs rm "$id" >/dev/null

# Killed around publishing: resumed, the model is there once, and whole.
for delay in 0 0.01 0.02 0.03 0.05 0.08; do
  "${train[@]}" --model late >/dev/null 2>&1 &
  job=$!
  wait_for 20 some "$FASTSERVE_HOME/jobs/*/checkpoints/step-000000120"
  sleep $delay
  kill -KILL $job 2>/dev/null
  wait $job 2>/dev/null
  id="$(job_of late)"
  if "$fsctl" -q jobs show "$id" | grep -q finished; then
    "$fsctl" -q models verify late >/dev/null || problem "late is not whole"
  else
    "$fsctl" -q jobs resume "$id" --json >"$scratch/late.json" || problem "resume after a kill $delay s into the end"
    same_bits "$scratch/late.json" "killed $delay s into the end"
  fi
  [ "$("$fsctl" -q models list | grep -c '^late@')" = 1 ] || problem "published $("$fsctl" -q models list | grep -c '^late@') times"
  "$fsctl" -q models verify late >/dev/null || problem "late is not whole"
  "$fsctl" -q models rm late >/dev/null || problem "models rm"
  "$fsctl" -q jobs rm "$id" >/dev/null || problem "jobs rm"
done

# Other data than the job began with is refused, before and after the first checkpoint, and costs nothing.
for every in 1000 10; do
  "${train[@]/#10/$every}" --model moved >/dev/null 2>&1 &
  job=$!
  if [ $every = 10 ]; then wait_for 20 some "$FASTSERVE_HOME/jobs/*/checkpoints/step-*"
  else wait_for 20 some "$FASTSERVE_HOME/jobs/*/documents.json"; fi
  kill -KILL $job
  wait $job 2>/dev/null
  id="$(job_of moved)"
  cp "$text/input.txt" "$scratch/kept"
  echo "And one line more." >>"$text/input.txt"
  must_fail 11 "changed" "$fsctl" -q jobs resume "$id"
  mv "$text/input.txt" "$scratch/away.txt"
  must_fail 12 "no text" "$fsctl" -q jobs resume "$id"
  cp "$scratch/kept" "$text/input.txt"
  mkdir -p "$scratch/elsewhere" && cp "$scratch/kept" "$scratch/elsewhere/input.txt"
  "$fsctl" -q train --resume "$id" --data "$scratch/elsewhere" --json >"$scratch/moved.json" ||
    problem "resume with data that has moved"
  same_bits "$scratch/moved.json" "data that has moved"
  "$fsctl" -q jobs rm "$id" >/dev/null
done

# A job that fine-tunes, killed before its first checkpoint, begins again with its parent's weights.
tune=("$fsctl" -q train --data "$text" --from calm@1 --steps 40 --batch-size 12 --evaluate-every 0
      --evaluate-sequences 16 --checkpoint-every 1000 --json)
"${tune[@]}" --model tuned >"$scratch/tuned.json" || problem "fine-tuning"
"$fsctl" -q jobs rm "$(job_of tuned)" >/dev/null
"${tune[@]}" --model tuned-again >/dev/null 2>&1 &
job=$!
wait_for 20 some "$FASTSERVE_HOME/jobs/*/checkpoints"
kill -KILL $job 2>/dev/null
wait $job 2>/dev/null
id="$(job_of tuned-again)"
if ! "$fsctl" -q jobs show "$id" | grep -q finished; then
  "$fsctl" -q jobs resume "$id" --json >"$scratch/again.json" || problem "resume of a fine-tuning"
  [ "$(json "$scratch/again.json" weights_hash)" = "$(json "$scratch/tuned.json" weights_hash)" ] ||
    problem "a fine-tuning killed before its first checkpoint forgot its parent"
fi

# The disk fills up while a job runs: it says so, and loses nothing.
mkdir -p "$scratch/small-disk"
if mount -t tmpfs -o size=200m none "$scratch/small-disk" 2>/dev/null; then
  full=("$fsctl" --store "$scratch/small-disk/store")
  "${full[@]}" "${train[@]:2}" --model full >/dev/null 2>"$scratch/full.err" &
  job=$!
  wait_for 20 some "$scratch/small-disk/store/jobs/*/checkpoints/step-*"
  head -c 300m /dev/zero >"$scratch/small-disk/filler" 2>/dev/null
  wait $job
  code=$?
  if [ $code != 0 ]; then
    [ $code = 16 ] || problem "on a full disk training ended in $code: $(cat "$scratch/full.err")"
    grep -q "checkpoint was not written" "$scratch/full.err" || problem "no word of the missed checkpoint: $(cat "$scratch/full.err")"
    grep -q "fsctl jobs resume" "$scratch/full.err" || problem "no way out of a full disk: $(cat "$scratch/full.err")"
    rm "$scratch/small-disk/filler"
    id="$("${full[@]}" -q jobs list | awk '$3 == "full" { print $1 }')"
    "${full[@]}" -q jobs resume "$id" --json >"$scratch/full.json" || problem "resume after a full disk"
    same_bits "$scratch/full.json" "after a full disk"
  fi
  umount "$scratch/small-disk"
else
  echo "skipped: a small disk cannot be mounted here"
fi

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
