#!/usr/bin/env bash
# The command line itself: misspelt words, --json, colour, help, completion, output that cannot be written.
source "$(dirname "$0")/session.sh"

# A misspelt word is answered with the one that was meant.
must_fail 2 "did you mean train" "$fsctl" trian --data x
must_fail 2 "did you mean list" "$fsctl" models lsit
must_fail 2 "did you mean --batch-size" "$fsctl" train --batchsize 4
must_fail 2 "fsctl models --help" "$fsctl" models
must_fail 2 "no place for \"extra\"" "$fsctl" version extra
must_fail 2 "--lanes" "$fsctl" --lanes many status
must_fail 2 "fsctl --help" "$fsctl"

# --json: exactly one document on stdout, whatever happens, and the exit code as without it.
is_document() { python3 -c 'import json,sys; json.load(open(sys.argv[1]))' "$1" 2>/dev/null; }
command -v python3 >/dev/null || is_document() { [ "$(head -c1 "$1")" = "{" ] || [ "$(head -c1 "$1")" = "[" ]; }
json_from() {  # json_from CODE COMMAND...
  local code="$1" got
  shift
  timeout 60 "$fsctl" "$@" >"$scratch/out" 2>"$scratch/err"
  got=$?
  [ $got = "$code" ] || problem "exit $got instead of $code: $*"
  is_document "$scratch/out" || problem "no JSON document from: $*: $(head -3 "$scratch/out" "$scratch/err")"
  [ "$code" = 0 ] || grep -q '"error"' "$scratch/out" || problem "no error in the document of: $*"
}
json_from 0 --json version
json_from 0 status --json
json_from 0 models list --json
json_from 0 jobs list --json
json_from 0 devices --json
json_from 0 bench --json
json_from 0 completion zsh --json
json_from 12 models show absent --json
json_from 12 models rm absent --json
json_from 12 models verify absent --json
json_from 12 models tag absent best --json
json_from 12 models use absent@1 --json
json_from 12 models rename absent other --json
json_from 12 models export absent "$scratch/x" --json
json_from 12 models import "$scratch/nowhere" --name a --json
json_from 12 jobs show absent --json
json_from 12 jobs resume absent --json
json_from 12 jobs rm absent --json
json_from 12 bench absent --json
json_from 12 train --data "$scratch/nowhere" --model m --json
json_from 12 compress absent --json
json_from 12 deploy absent --json
json_from 12 generate absent --prompt x --json
json_from 12 parity "$scratch/nowhere" --json
json_from 17 status --connect 127.0.0.1:1 --json
json_from 2 --json trian
json_from 2 models lsit --json

# Colour only on a terminal, and never against NO_COLOR.
red() { grep -q $'\033\[31m' "$scratch/err"; }
must_fail 12 "absent" "$fsctl" models show absent
red && problem "colour in a file"
must_fail 12 "absent" "$fsctl" --color always models show absent
red || problem "--color always shows no colour"
if command -v script >/dev/null; then
  TERM=xterm script -qec "'$fsctl' models show absent" /dev/null </dev/null >"$scratch/err"
  red || problem "no colour on a terminal"
  NO_COLOR=1 script -qec "'$fsctl' models show absent" /dev/null </dev/null >"$scratch/err"
  red && problem "colour in spite of NO_COLOR"
fi

# Every command's help has an example, and the reference names the command and all of its options.
reference="$source_dir/docs/fsctl.md"
words_after() { "$fsctl" complete -- "$@"; }
walk() {
  local word option
  for word in $(words_after "$@" ""); do
    case "$* $word" in completion\ *) continue ;; esac
    "$fsctl" "$@" "$word" --help >"$scratch/help" || problem "no help for: $* $word"
    sed '1,/^Example/d' "$scratch/help" | grep -q "fsctl.* $word\b" || problem "no example in the help of: $* $word"
    grep -q "fsctl ${*:+$* }$word" "$reference" || problem "docs/fsctl.md does not know: $* $word"
    for option in $(words_after "$@" "$word" "--"); do
      grep -q -- "$option\b" "$reference" || problem "docs/fsctl.md does not know $option of $* $word"
    done
    walk "$@" "$word"
  done
}
walk

# What a shell completes with.
offers() {  # offers "WANTED WORDS" TYPED...
  local wanted="$1" got
  shift
  got="$(words_after "$@" | tr '\n' ' ')"
  [ "$got" = "$wanted" ] || problem "after \"$*\" come \"$got\", not \"$wanted\""
}
offers "chat cluster completion compress " c
offers "list " models li
offers "fp32 " train --precision f32 --precision fp3
offers "auto " --color au
offers "--quiet " models list --q
offers "zsh " completion z
offers "" generate poems ""
"$fsctl" completion bash >"$scratch/completion.bash"
in_bash() { bash --norc -c "PATH=\"$(dirname "$fsctl"):\$PATH\"; source '$scratch/completion.bash'
  COMP_WORDS=($1) COMP_CWORD=$2; _fsctl 2>/dev/null; echo \"\${COMPREPLY[*]}\""; }
[ "$(in_bash "fsctl mod" 1)" = models ] || problem "bash: $(in_bash "fsctl mod" 1)"
[ "$(in_bash "fsctl models ver" 2)" = verify ] || problem "bash: $(in_bash "fsctl models ver" 2)"
[ "$(cd "$source_dir" && in_bash "fsctl parity READ" 2)" = README.md ] || problem "bash completes no files"
for shell in zsh fish; do
  command -v $shell >/dev/null || { echo "skipped: no $shell here"; continue; }
  "$fsctl" completion $shell >"$scratch/completion.$shell"
  $shell -n "$scratch/completion.$shell" || problem "$shell does not read its script"
done
if command -v fish >/dev/null; then
  got="$(PATH="$(dirname "$fsctl"):$PATH" fish -c "source '$scratch/completion.fish'; complete -C 'fsctl models ver'")"
  [ "$got" = verify ] || problem "fish: $got"
fi

# A reader that goes away ends the command quietly; a full disk is said.
"$fsctl" parity "$source_dir/tests/data/reference/quant" 2>"$scratch/err" | head -1 >/dev/null
grep -q terminate "$scratch/err" && problem "a closed pipe: $(cat "$scratch/err")"
if [ -w /dev/full ]; then
  "$fsctl" models list >/dev/full 2>"$scratch/err"
  code=$?
  [ $code = 21 ] || problem "a full disk under stdout ended in $code"
  grep -q "No space" "$scratch/err" || problem "a full disk: $(cat "$scratch/err")"
fi
finish
