#!/usr/bin/env bash
# --device: a job and a deployment on a GPU, what is said of the choice, and what is refused.
# device.sh FSCTL SOURCE [DEVICE]: the emulated one, unless cuda is asked for (bench/gpu_report does).
source "$(dirname "$0")/session.sh"
gpu="${3:-emulated}"
"$fsctl" -q models import "$source_dir/tests/data/reference/models/gpt2-tiny" --name seed >/dev/null || problem "import"
mkdir "$scratch/text" && head -c 3000 "$source_dir/data/tinyshakespeare/input.txt" >"$scratch/text/some.txt"
start=("$fsctl" train --data "$scratch/text" --from seed --steps 5 --block 16 --evaluate-sequences 2
       --checkpoint-every 1 --learning-rate 1e-3 --lanes 2 --json)
train=("${start[@]}" --batch-size 2 --microbatches 2)

"${train[@]}" --device "$gpu" --model calm >"$scratch/calm.json" 2>"$scratch/calm.err" ||
  problem "training on it: $(tail -3 "$scratch/calm.err")"
grep -q "^device gpu " "$scratch/calm.err" || problem "the log does not say what was chosen"
want="$(json "$scratch/calm.json" weights_hash)"
[ -n "$want" ] || problem "no hash of the weights"
"$fsctl" -q jobs show "$(json "$scratch/calm.json" job)" --json | grep -q "\"device\": \"$gpu\"" ||
  problem "the job's record does not name the device"

grep -q "training passes are started as graphs" "$scratch/calm.err" || problem "the log does not tell of graphs"
grep -q "optimiser on the device" "$scratch/calm.err" || problem "the log does not say where weights are updated"

# Layers computed again are the same bits; an optimiser on the host is not, but says as much.
"${train[@]}" --device "$gpu" --recompute layer --model again --json >"$scratch/again.json" 2>"$scratch/again.err" ||
  problem "recomputing: $(tail -3 "$scratch/again.err")"
grep -q "layers recomputed" "$scratch/again.err" || problem "the log does not say that layers are recomputed"
[ "$(json "$scratch/again.json" weights_hash)" = "$want" ] || problem "recomputing changes bits"
"${train[@]}" --device "$gpu" --optimiser host --model split --json >"$scratch/split.json" 2>"$scratch/split.err" ||
  problem "with the optimiser on the host: $(tail -3 "$scratch/split.err")"
grep -q "optimiser on the device" "$scratch/split.err" && problem "the optimiser was to stay on the host"

# Two cards end in the bits of one, and what works on one card says so.
if [ "$gpu" = emulated ]; then
  "${train[@]}" --device emulated:2x --model both >"$scratch/both.json" 2>"$scratch/both.err" ||
    problem "training on two: $(tail -3 "$scratch/both.err")"
  grep -q "^device 2 x gpu " "$scratch/both.err" || problem "the log does not say that there are two"
  grep -q "2 trainers, 2 parameter servers.*optimiser on the device" "$scratch/both.err" ||
    problem "the log does not say how two cards share the work: $(tail -3 "$scratch/both.err")"
  [ "$(json "$scratch/both.json" weights_hash)" = "$want" ] || problem "two cards change bits"
  # Over a ring they end in other bits, or these, and are told apart from one card's.
  "${train[@]}" --device emulated:2x --reduce ring --model ring >"$scratch/ring.json" 2>"$scratch/ring.err" ||
    problem "training over a ring: $(tail -3 "$scratch/ring.err")"
  grep -q "gradients summed over a ring" "$scratch/ring.err" || problem "the log does not tell of the ring"
  must_fail 11 "there are not several cards" "${train[@]}" --device emulated --reduce ring --model never
  must_fail 11 "there are not several cards" "${train[@]}" --device cpu --reduce ring --model never
  must_fail 11 "names 2 cards, and serving works on one" "$fsctl" generate seed --device emulated:2x --prompt x
fi

# Killed once it has a checkpoint; resumed without a word about devices, and with another number of trainers.
"${train[@]}" --device "$gpu" --model storm >/dev/null 2>&1 &
job=$!
for _ in $(seq 3000); do
  ls -d "$FASTSERVE_HOME"/jobs/*/checkpoints/step-* >/dev/null 2>&1 && break
  kill -0 $job 2>/dev/null || break
  sleep 0.02
done
kill -KILL $job 2>/dev/null && wait $job 2>/dev/null
id="$("$fsctl" -q jobs list | awk '$3 == "storm" { print $1 }')"
"$fsctl" train --resume "$id" --trainers 2 --json >"$scratch/resumed.json" 2>"$scratch/resumed.err" ||
  problem "resuming: $(tail -3 "$scratch/resumed.err")"
grep -q "^device gpu " "$scratch/resumed.err" || problem "it did not go on on the device it was on"
[ "$(json "$scratch/resumed.json" weights_hash)" = "$want" ] ||
  problem "killed and resumed: $(json "$scratch/resumed.json" weights_hash), not $want"

# The same greedy answer as the CPU's.
for device in cpu "$gpu"; do
  start_server calm --weights f32 --kv-f32 --device $device --context-tokens 128 || continue
  "$fsctl" -q generate --connect "127.0.0.1:$port" --prompt "First Citizen:" --max-tokens 12 --temperature 0 --json \
    >"$scratch/$device.json" || problem "generate on $device"
  "$fsctl" -q status --connect "127.0.0.1:$port" | grep -Eq "cpu |gpu " || problem "status does not name the device"
  stop_server || problem "the server did not stop cleanly"
done
cmp -s <(grep '"text"' "$scratch/cpu.json") <(grep '"text"' "$scratch/$gpu.json") ||
  problem "greedy answers differ: $(grep -h '"text"' "$scratch/cpu.json" "$scratch/$gpu.json")"

# What does not fit is refused with what does; what is not there with what to install.
if [ "$gpu" = emulated ]; then
  must_fail 16 "microbatches of .* tokens fit" "${start[@]}" --device emulated:2000000 --batch-size 64 --microbatches 1 \
    --recompute none --model never
  must_fail 16 "emulated" "$fsctl" generate seed --device emulated:400000 --prompt x
fi
must_fail 2 "is no device" "${train[@]}" --device gpu --model never
must_fail 11 "each node's own affair" "${train[@]}" --optimiser host --cluster 127.0.0.1:1 --model never
must_fail 11 "fsctl node start --device" "${train[@]}" --device cpu --cluster 127.0.0.1:1 --model never
if ! "$fsctl" devices --json | grep -q '"usable": true'; then
  must_fail 12 "docs/gpu.md" env FASTSERVE_CUDA_PLUGIN=/nowhere.so "${train[@]}" --device cuda --model never
  FASTSERVE_CUDA_PLUGIN='' "$fsctl" generate seed --prompt x --max-tokens 1 2>"$scratch/auto.err" >/dev/null || problem "auto"
  grep -q "^device cpu .*lanes\? (no GPU: " "$scratch/auto.err" ||
    problem "auto does not say why: $(cat "$scratch/auto.err")"
fi
"$fsctl" --help | grep -q emulated && problem "--help shows the emulator"
finish
