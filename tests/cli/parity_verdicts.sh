#!/usr/bin/env bash
# fsctl parity: exit codes, and what it says of sets that do not pass.   parity_verdicts.sh FSCTL SOURCE
source "$(dirname "$0")/session.sh"

reference=$source_dir/tests/data/reference
# exits CODE PARAMETERS...
exits() {
  local code="$1"
  shift
  "$fsctl" "$@"
  local got=$?
  [ "$got" = "$code" ] || problem "exit $got instead of $code: $*" >&2
}

"$fsctl" parity "$reference/malformed" >"$scratch/out" || problem "the malformed set does not pass"
grep 'malformed/index/missing_shard' "$scratch/out" | grep -q 'model-00002-of-00002.safetensors' ||
  problem "the missing shard is not what the index case is refused for"

# A model whose weights round badly is held to what stock code itself achieved on it, and no more.
cp -r "$reference/models/qwen2-tiny" "$scratch/rough" && chmod -R u+w "$scratch/rough"
sed -i 's/"logits_max_abs": [0-9.e-]*/"logits_max_abs": 5e-05/' "$scratch/rough/reference.json"
"$fsctl" parity "$scratch/rough" | grep 'logits, largest difference' | head -1 |
  grep -q 'tolerance 2.0e-04' || problem "a recorded error does not set the tolerance"
sed -i 's/"logits_max_abs": [0-9.e-]*/"logits_max_abs": 7.5/' "$scratch/rough/reference.json"
"$fsctl" parity "$scratch/rough" | grep 'logits, largest difference' | head -1 |
  grep -q 'tolerance 1.0e-03' || problem "an absurd recorded error sets the tolerance"

mkdir "$scratch/odd" && cp "$reference/malformed/safetensors/ok_control.safetensors" "$scratch/odd/"
cat >"$scratch/odd/manifest.json" <<'JSON'
[{"path": "ok_control.safetensors", "kind": "safetensors", "expected": "ok"},
 {"path": "ok_control.safetensors", "kind": "safetensors", "expected": "clear error"},
 {"path": "ok_control.safetensors", "kind": "poem", "expected": "ok"}]
JSON
exits 1 parity "$scratch/odd" --json >"$scratch/out"
grep -q '"failed": *2' "$scratch/out" || problem "one accepted and one unknown case are not two failures"
echo '{' >"$scratch/odd/manifest.json"
exits 1 parity "$scratch/odd" >"$scratch/out"
grep -q 'manifest.json' "$scratch/out" || problem "a broken manifest is not named"

# An example beside each kind of result that differs, and only there.
cp -r "$reference/tokenizers/bpe-gpt2-512" "$scratch/words" && chmod -R u+w "$scratch/words"
sed -i '1s/"decoded": "[^"]*"/"decoded": "something else"/' "$scratch/words/cases.jsonl"
exits 1 parity "$scratch/words" >"$scratch/out"
[ "$(grep -c 'cases.jsonl:1: decoded' "$scratch/out")" = 1 ] || problem "the differing case is not shown once"
finish
