#!/usr/bin/env bash
# One server under several clients: two models, company, a KV cache too small for all, chats, Ctrl-C
# while it answers, and weights that are damaged.
source "$(dirname "$0")/session.sh"
models="$source_dir/tests/data/reference/models"
"$fsctl" -q models import "$models/qwen3-tiny" --name q >/dev/null || problem "import"
"$fsctl" -q models import "$models/llama3-tiny" --name l >/dev/null || problem "import"

answer() {  # answer FILE MODEL ARGUMENTS...: the answer's text, without the times
  "$fsctl" -q generate "${@:2}" --prompt "The " --max-tokens 40 --json >"$1.json" && grep -v '"seconds"' "$1.json" >"$1"
}
sampling=(--temperature 0.9 --top-k 40 --top-p 0.95 --min-p 0.01 --repetition-penalty 1.1 --seed 11 --logprobs 2
          --stop "no such text" --ignore-eos)
answer "$scratch/q" q "${sampling[@]}" || problem "generate q"
answer "$scratch/l" l "${sampling[@]}" || problem "generate l"

# Room for fewer answers than there are clients: they wait their turn and say what they say alone.
start_server q l --context-tokens 96 && {
  clients=
  for i in 1 2 3 4 5 6 7 8; do
    answer "$scratch/q$i" q --connect "127.0.0.1:$port" "${sampling[@]}" & clients+=" $!"
    answer "$scratch/l$i" l --connect "127.0.0.1:$port" "${sampling[@]}" & clients+=" $!"
  done
  wait $clients
  for i in 1 2 3 4 5 6 7 8; do
    cmp -s "$scratch/q$i" "$scratch/q" || problem "company changed an answer of q"
    cmp -s "$scratch/l$i" "$scratch/l" || problem "company changed an answer of l"
  done
  "$fsctl" status --connect "127.0.0.1:$port" --json >"$scratch/status.json"
  [ "$(json "$scratch/status.json" kv_blocks_free)" = "$(json "$scratch/status.json" kv_blocks)" ] || problem "KV blocks leaked"
  [ "$(json "$scratch/status.json" requests_finished)" = 16 ] || problem "16 requests should have finished"
  must_fail 11 "name one of: q, l" "$fsctl" generate --connect "127.0.0.1:$port" --prompt x
  must_fail 11 "context holds 96" "$fsctl" generate q --connect "127.0.0.1:$port" --prompt "$(seq 500)"
  must_fail 11 "prompt: is not UTF-8" "$fsctl" generate q --connect "127.0.0.1:$port" --prompt $'\xff'

  # A chat goes on when the context is full, here and behind a port alike.
  printf 'Tell me a story.\nAnd another one.\nWhat then?\nWhat else?\n' >"$scratch/questions"
  "$fsctl" chat l --connect "127.0.0.1:$port" --max-tokens 8 --seed 3 --json <"$scratch/questions" >"$scratch/chat" 2>"$scratch/err" ||
    problem "chat: $(cat "$scratch/err")"
  [ "$(grep -c '"finish_reason"' "$scratch/chat")" = 4 ] || problem "four questions should have four answers"
  grep -q "oldest question is forgotten" "$scratch/err" || problem "no word of the full context"
  stop_server || problem "the server did not stop cleanly"
}

# Keys and values as int8, behind a port as in this process.
start_server l --kv int8 && {
  answer "$scratch/narrow" l --kv int8 "${sampling[@]}" || problem "generate --kv int8"
  answer "$scratch/far" l --connect "127.0.0.1:$port" "${sampling[@]}" || problem "generate from --kv int8"
  cmp -s "$scratch/narrow" "$scratch/far" || problem "int8 keys and values answer otherwise behind a port"
  cmp -s "$scratch/narrow" "$scratch/l" && problem "int8 keys and values should move log-probabilities a little"
  must_fail 11 "fsctl deploy" "$fsctl" generate l --kv int8 --connect "127.0.0.1:$port" --prompt x
  stop_server || problem "the server with --kv int8 did not stop cleanly"
}
must_fail 11 "use f16, f32 or int8" "$fsctl" deploy l --kv int4 --port 0

# Where one of them fits they take turns, and say what they say alone.
room_of() {  # room_of MODEL: bytes, as its refusal says
  "$fsctl" deploy "$1" --context-tokens 96 --model-memory 1KiB --port 0 2>&1 |
    sed -n 's/.*serving needs \([0-9.]* [KM]iB\) of memory.*/\1/p' | tr -d ' B' | numfmt --from=iec-i
}
room=$({ room_of q; room_of l; } | sort -n | tail -1)
room=$((room + room / 10))
must_fail 16 "--turns" "$fsctl" deploy q l --context-tokens 96 --model-memory "$room" --port 0
must_fail 16 "by itself needs" "$fsctl" deploy q l --context-tokens 96 --turns --model-memory 1KiB --port 0
start_server q l --context-tokens 96 --turns --model-memory "$room" && {
  "$fsctl" status --connect "127.0.0.1:$port" >"$scratch/status"
  grep -q "serves q@1, l@1 (not in the device's memory now)" "$scratch/status" || problem "status: $(cat "$scratch/status")"
  clients=
  for i in 1 2 3 4; do
    answer "$scratch/q$i" q --connect "127.0.0.1:$port" "${sampling[@]}" & clients+=" $!"
    answer "$scratch/l$i" l --connect "127.0.0.1:$port" "${sampling[@]}" & clients+=" $!"
  done
  wait $clients
  for i in 1 2 3 4; do
    cmp -s "$scratch/q$i" "$scratch/q" || problem "turns changed an answer of q"
    cmp -s "$scratch/l$i" "$scratch/l" || problem "turns changed an answer of l"
  done
  answer "$scratch/l5" l --connect "127.0.0.1:$port" "${sampling[@]}" || problem "l after its turn"
  "$fsctl" status --connect "127.0.0.1:$port" >"$scratch/status"
  grep -q "serves q@1 (not in the device's memory now), l@1" "$scratch/status" || problem "status: $(cat "$scratch/status")"
  # The store is free meanwhile. What is removed there does not come back, and says so; the others do.
  "$fsctl" -q models rm q >/dev/null || problem "rm while models take turns"
  must_fail 14 "cannot be trusted" "$fsctl" generate q --connect "127.0.0.1:$port" --prompt x
  answer "$scratch/l6" l --connect "127.0.0.1:$port" "${sampling[@]}" && cmp -s "$scratch/l6" "$scratch/l" ||
    problem "l did not come back after q could not"
  "$fsctl" -q models import "$models/qwen3-tiny" --name q >/dev/null || problem "import q again"
  stop_server || problem "the server that takes turns did not stop cleanly"
}

# Ctrl-C while it answers: what runs is finished, what comes is refused.
start_server l && {
  clients=
  for i in $(seq 24); do
    "$fsctl" -q generate l --connect "127.0.0.1:$port" --prompt "The " --max-tokens 300 --ignore-eos --json >"$scratch/last$i" 2>/dev/null &
    clients+=" $!"
  done
  sleep 0.1
  stop_server || problem "the server did not stop cleanly while it answered"
  wait $clients
  for i in $(seq 24); do
    [ "$(json "$scratch/last$i" generated_tokens)" = 300 ] || grep -q '"error"' "$scratch/last$i" ||
      problem "an answer was cut: $(tail -3 "$scratch/last$i")"
  done
}

# Weights that are damaged are never served.
for extent in "$FASTSERVE_HOME"/models/extents/*; do
  printf 'XXXX' | dd of="$extent" bs=1 seek=$(($(stat -c %s "$extent") / 2)) conv=notrunc 2>/dev/null
done
must_fail 14 "cannot be trusted" "$fsctl" deploy q --port 0
finish
