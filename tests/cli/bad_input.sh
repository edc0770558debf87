#!/usr/bin/env bash
# Each mistake: one clear error naming the thing and the way out, an exit code, nothing left behind.
source "$(dirname "$0")/session.sh"
data="$source_dir/data/tinyshakespeare"
reference="$source_dir/tests/data/reference"

mkdir -p "$scratch/empty" "$scratch/binary" "$scratch/short" "$scratch/images" "$scratch/latin"
printf 'abc\0def' >"$scratch/binary/a.txt"
printf 'caf\xe9 au lait' >"$scratch/latin/a.txt"
printf 'too short' >"$scratch/short/a.txt"
printf 'x' >"$scratch/images/a.png"

must_fail 12 "nowhere" "$fsctl" train --data "$scratch/nowhere" --model m
must_fail 12 "no text" "$fsctl" train --data "$scratch/empty" --model m
must_fail 12 "no text" "$fsctl" train --data "$scratch/images" --model m
must_fail 11 "binary/a.txt" "$fsctl" train --data "$scratch/binary" --model m
must_fail 11 "latin/a.txt" "$fsctl" train --data "$scratch/latin" --model m
must_fail 11 "block" "$fsctl" train --data "$scratch/short" --model m
must_fail 11 "model" "$fsctl" train --data "$data" --model "Not A Name!"
must_fail 12 "no-such-preset" "$fsctl" train --data "$data" --model m --preset no-such-preset
must_fail 12 "nothing" "$fsctl" train --data "$data" --from nothing --model m
must_fail 11 "block" "$fsctl" train --data "$data" --model m --block 0
must_fail 16 "memory" "$fsctl" train --data "$data" --model m --batch-size 1000000 --microbatches 1
must_fail 2 "trian" "$fsctl" trian
must_fail 11 "needs --data" "$fsctl" train

must_fail 12 "absent" "$fsctl" generate absent --prompt x
must_fail 12 "absent" "$fsctl" compress absent
must_fail 12 "config.json" "$fsctl" models import "$scratch/empty" --name m
must_fail 17 "nothing listens" "$fsctl" generate --connect 127.0.0.1:1 --prompt x
must_fail 11 "HOST:PORT" "$fsctl" generate --connect nonsense --prompt x
for case in unknown_model_type missing_tensor not_json; do
  cp -r "$reference/malformed/config/$case" "$scratch/$case"
  [ -e "$scratch/$case/model.safetensors" ] || cp "$reference/malformed/config/model.safetensors" "$scratch/$case/"
  timeout 20 "$fsctl" -q models import "$scratch/$case" --name m >/dev/null 2>"$scratch/err"
  code=$?
  { [ $code -ge 11 ] && [ $code -le 16 ]; } || problem "importing $case ended in $code"
  grep -q "$case" "$scratch/err" || problem "importing $case does not name it: $(cat "$scratch/err")"
done
[ "$("$fsctl" -q models list --json)" = "[]" ] || problem "a refused model was published"

"$fsctl" -q train --data "$data" --preset tiny --steps 3 --evaluate-sequences 8 --model small >/dev/null || problem "train"
must_fail 11 "temperature" "$fsctl" generate small --prompt x --temperature -1
must_fail 11 "temperature" "$fsctl" generate small --prompt x --temperature nan
must_fail 11 "top-p\|top_p" "$fsctl" generate small --prompt x --top-p 1.5
must_fail 11 "max.tokens" "$fsctl" generate small --prompt x --max-tokens -5
must_fail 11 "top.k" "$fsctl" generate small --prompt x --top-k 1000000000
must_fail 11 "timeout" "$fsctl" generate small --prompt x --timeout -1
must_fail 11 "timeout" "$fsctl" generate small --prompt x --timeout nan
must_fail 11 "stop" "$fsctl" generate small --prompt x --stop ""
must_fail 11 "stop" "$fsctl" generate small --prompt x $(seq 17 | sed 's/^/--stop x/')
[ -s "$scratch/out" ] && problem "a refused prompt was printed: $(cat "$scratch/out")"
must_fail 11 "prompt" "$fsctl" generate small
must_fail 11 "context" "$fsctl" generate small --prompt "$(head -c 5000 "$data/input.txt")"
must_fail 11 "allow-remote" "$fsctl" deploy small --address 0.0.0.0
must_fail 11 "context-tokens" "$fsctl" deploy small --port 0 --context-tokens -5
must_fail 11 "context-tokens" "$fsctl" deploy small --port 0 --context-tokens 2147483647
must_fail 11 "max-queue" "$fsctl" deploy small --port 0 --max-queue -100
must_fail 11 "grace" "$fsctl" deploy small --port 0 --grace nan
must_fail 11 "twice" "$fsctl" deploy small small --port 0
must_fail 12 "absent" "$fsctl" deploy small absent --port 0

start_server small && {
  must_fail 17 "$port" "$fsctl" deploy small --port "$port"
  grep -q "loaded" "$scratch/err" && problem "a model was loaded for a port that is taken"
  must_fail 12 "absent" "$fsctl" generate absent --connect "127.0.0.1:$port" --prompt x
  # Garbage, half a message, silence: the server answers the next client.
  head -c 4096 /dev/urandom >"/dev/tcp/127.0.0.1/$port" 2>/dev/null
  printf '\0\0\0\0\377\377\377\377' >"/dev/tcp/127.0.0.1/$port" 2>/dev/null
  exec 9<>"/dev/tcp/127.0.0.1/$port"
  "$fsctl" -q generate --connect "127.0.0.1:$port" --prompt "A" --max-tokens 5 >/dev/null || problem "garbage harmed the server"
  exec 9>&-
  stop_server || problem "the server did not stop cleanly"
}

# Two processes on one store: the second is told who holds it.
if command -v flock >/dev/null; then
  flock "$FASTSERVE_HOME/models/lock" sleep 20 &
  holder=$!
  sleep 0.3
  must_fail 17 "in use" "$fsctl" models tag small best
  kill $holder 2>/dev/null
  wait $holder 2>/dev/null
fi

# A full disk, where a small one can be mounted.
mkdir -p "$scratch/small-disk"
if mount -t tmpfs -o size=2m none "$scratch/small-disk" 2>/dev/null; then
  must_fail 16 "free" "$fsctl" --store "$scratch/small-disk/store" train --data "$data" --preset tiny --steps 3 --model m
  umount "$scratch/small-disk"
else
  echo "skipped: a small disk cannot be mounted here"
fi
finish
