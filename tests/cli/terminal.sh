#!/usr/bin/env bash
# What somebody at a terminal sees: bars that fit, and Ctrl-C.
source "$(dirname "$0")/session.sh"
command -v script >/dev/null || { echo "skipped: no script(1) here"; exit 0; }
data="$source_dir/data/tinyshakespeare"
# at_terminal COLUMNS COMMAND...: what the command wrote to a terminal that wide, a bar's picture a line.
at_terminal() {
  local columns="$1"
  shift
  script -qec "stty cols $columns; $(printf '%q ' "$@")" /dev/null </dev/null | sed 's/\x1b\[K//g' | tr '\r' '\n'
}
bars() { grep -E "$1 .*%" "$scratch/shown"; }

for columns in 100 60 20; do
  at_terminal $columns "$fsctl" train --data "$data" --preset tiny --steps 300 --evaluate-sequences 8 --model m >"$scratch/shown"
  bars train >"$scratch/bars" || problem "no bar at $columns columns: $(head -c 500 "$scratch/shown")"
  awk -v most=$columns 'length($0) >= most { bad = 1 } END { exit bad }' "$scratch/bars" || problem "a bar wraps at $columns columns"
done
at_terminal 100 "$fsctl" train --data "$data" --preset tiny --steps 300 --evaluate-sequences 8 --model m >"$scratch/shown"
bars train | grep -q "step .*loss .*tok/s .*ETA" || problem "no rate or ETA: $(bars train | tail -1)"
at_terminal 100 "$fsctl" models export m "$scratch/hf" >"$scratch/shown"
at_terminal 100 "$fsctl" models import "$scratch/hf" --name again >"$scratch/shown"
bars import | grep -q "iB/s.*ETA" || problem "no rate or ETA: $(cat "$scratch/shown")"
at_terminal 100 timeout -s INT 3 "$fsctl" deploy m --port 0 >"$scratch/shown"
bars load | grep -q "iB/s.*ETA" || problem "no rate or ETA: $(cat "$scratch/shown")"
at_terminal 100 "$fsctl" models verify m --quiet >"$scratch/shown"
bars verify && problem "a bar although --quiet"

# The first Ctrl-C stops cleanly and says how to go on, the second at once.
"$fsctl" train --data "$data" --preset tiny --steps 1000000 --checkpoint-every 1000000 --model n >"$scratch/out" 2>"$scratch/err" &
job=$!
sleep 2
kill -INT $job
wait $job
code=$?
[ $code = 130 ] || problem "Ctrl-C ended in $code"
grep -q "jobs resume" "$scratch/err" || problem "does not say how to go on: $(cat "$scratch/err")"
"$fsctl" train --data "$data" --preset gpt2 --steps 10 --model o >"$scratch/out" 2>"$scratch/err" &
job=$!
sleep 3
kill -INT $job
sleep 0.2
start=$SECONDS
kill -INT $job 2>/dev/null
wait $job
code=$?
[ $code = 130 ] || problem "a second Ctrl-C ended in $code"
[ $((SECONDS - start)) -le 2 ] || problem "a second Ctrl-C took $((SECONDS - start)) s"
finish
