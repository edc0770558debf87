#!/usr/bin/env bash
# A store and its variants as a user keeps them: pruned, quantised, refused, named, damaged, shared.
source "$(dirname "$0")/session.sh"
data="$source_dir/data/tinyshakespeare"
reference="$source_dir/tests/data/reference"
q=("$fsctl" -q)

# The text held out by training is what compression measures on.
cp -r "$data" "$scratch/text"
"${q[@]}" train --data "$scratch/text" --preset tiny --steps 40 --evaluate-sequences 8 --model base >/dev/null ||
  problem "train"
"${q[@]}" compress base --weights int8 --to small --max-perplexity-increase 0.01 --json >"$scratch/int8.json" ||
  problem "compress to int8"
grep -q '"perplexity"' "$scratch/int8.json" || problem "no perplexity in the report"
"${q[@]}" compress base --weights int4-g32 --prune neurons --sparsity 0.5 --to slim --json >"$scratch/slim.json" ||
  problem "compress with fewer neurons"
"${q[@]}" compress base --weights bf16 --prune wanda-2:4 --to sparse >/dev/null || problem "2:4 by Wanda"

# Refused: nothing is published, and what would pass is said with its figures.
must_fail 20 "would pass:" "${q[@]}" compress base --weights int4-g128 --prune magnitude --sparsity 0.9 --to no \
  --max-perplexity-increase 0.01
must_fail 20 "the original itself" "${q[@]}" compress base --to no --max-perplexity 1.5
must_fail 2 "above 0" "${q[@]}" compress base --to no --max-perplexity-increase 0
must_fail 11 "sparsity" "${q[@]}" compress base --prune wanda --to no
must_fail 11 "not a model name" "${q[@]}" compress base --to ../no
must_fail 15 "base@1" "${q[@]}" compress small --to no
must_fail 12 "there is no model" "${q[@]}" models show no

# Text that was learned from is not measured on.
printf 'more' >>"$scratch/text/input.txt"
must_fail 11 "changed since" "${q[@]}" compress base --to no
"${q[@]}" train --data "$data" --preset tiny --steps 3 --evaluate-sequences 8 --validation 0 --model all \
  >/dev/null || problem "train on everything"
must_fail 11 "nothing was held out" "${q[@]}" compress all --to no
"${q[@]}" models import "$reference/models/gpt2-tiny" --name imported >/dev/null || problem "import"
must_fail 11 "--data" "${q[@]}" compress imported --to no

# Lineage, names, tags.
"${q[@]}" models show small --json >"$scratch/show.json"
grep -q '"model": "base@1"' "$scratch/show.json" || problem "show does not tell the lineage"
"${q[@]}" models show base | grep -q "derived *small@1" || problem "show does not tell what was derived"
"${q[@]}" models tag base@1 best >/dev/null && "${q[@]}" models show base@best >/dev/null || problem "tag"
"${q[@]}" models untag base best >/dev/null || problem "untag"
must_fail 12 "tag" "${q[@]}" models show base@best
"${q[@]}" models rename base root >/dev/null || problem "rename"
"${q[@]}" models show small | grep -q "from *root@1" || problem "lineage does not follow a rename"
"${q[@]}" models rm root >/dev/null || problem "rm of a model that others were made from"
"${q[@]}" models show small | grep -q "removed since" || problem "show does not tell that the parent is gone"
must_fail 11 "model name" "${q[@]}" models show "../../etc/passwd"
must_fail 11 "model name" "${q[@]}" models rename small "a/b"

# Out and in again: quantised as it is, and as floats.
"${q[@]}" models export slim "$scratch/kept" --keep-quantised >/dev/null || problem "export as it is"
"${q[@]}" models import "$scratch/kept" --name again >/dev/null || problem "import of what was exported"
[ "$("${q[@]}" models show again --json | sed -n 's/.*"unique_bytes": \([0-9]*\).*/\1/p')" -lt 20000 ] ||
  problem "the same content is stored twice"
"${q[@]}" models export slim "$scratch/floats" >/dev/null || problem "export as floats"
grep -q '"n_inner": 256' "$scratch/floats/config.json" || problem "the exported width is not the pruned one"
must_fail 13 "already" "${q[@]}" models export slim "$scratch/floats"

# Two processes: names can be looked at while another works, the rest waits its turn.
mkfifo "$scratch/hold"
flock "$FASTSERVE_HOME/models/lock" cat "$scratch/hold" &
exec 8>"$scratch/hold"
for _ in $(seq 100); do
  flock -n "$FASTSERVE_HOME/models/lock" true || break
  sleep 0.02
done
"${q[@]}" models list | grep -q "small@1" || problem "list beside another process"
"${q[@]}" models show small >/dev/null || problem "show beside another process"
must_fail 17 "in use by process" "${q[@]}" models rm small
exec 8>&-
wait

# One flipped byte: verify names the model, the extent, the place, and what to do; doing it helps.
"${q[@]}" models verify >"$scratch/verify" || problem "verify of everything"
grep -q "small@1 is whole" "$scratch/verify" || problem "verify without a name leaves models out"
export FASTSERVE_HOME="$scratch/other"
"${q[@]}" models import "$scratch/kept" --name kept >/dev/null || problem "import into a new store"
extent="$(ls "$FASTSERVE_HOME"/models/extents/*)"
byte="$(od -An -tu1 -j 70000 -N 1 "$extent")"
printf "\\x$(printf %02x $((byte ^ 1)))" | dd of="$extent" bs=1 seek=70000 conv=notrunc status=none
must_fail 14 "kept@1: tensor .*$(basename "$extent").*block at byte" "${q[@]}" models verify
grep -q "which mends it" "$scratch/err" || problem "verify does not say what to do: $(cat "$scratch/err")"
"${q[@]}" models import "$scratch/kept" --name kept >/dev/null || problem "import again"
"${q[@]}" models verify >/dev/null || problem "the import did not mend what was damaged"
finish
