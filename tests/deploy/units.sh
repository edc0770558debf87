#!/usr/bin/env bash
# The systemd units: known settings only, and commands and options that fsctl has.
source "$(dirname "$0")/../cli/session.sh"

# has_options COMMAND... -- OPTION...: the command's help names each option.
has_options() {
  local words=()
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  shift
  "$fsctl" "${words[@]}" --help >"$scratch/help" || problem "no command: ${words[*]}"
  for option; do
    grep -q -- "$option\b" "$scratch/help" || problem "fsctl ${words[*]} has no $option"
  done
}
has_options cluster start --
# shellcheck disable=SC2046
has_options node start -- $(grep -o -- '--[a-z-]*' "$source_dir/deploy/systemd/node.env.example" | sort -u)

for unit in "$source_dir"/deploy/systemd/*.service; do
  name="$(basename "$unit")"
  grep -q '^ExecStart=/usr/bin/fsctl ' "$unit" || problem "$name does not run fsctl"
  sed "s|/usr/bin/fsctl|$fsctl|" "$unit" >"$scratch/$name"
  # Codes that are worth no second try are ErrorCodes plus 10, or 2: docs/exit-codes.md.
  for code in $(sed -n 's/^RestartPreventExitStatus=//p' "$unit"); do
    grep -q "^| $code |" "$source_dir/docs/exit-codes.md" || problem "$name knows an exit code $code that there is not"
  done
  command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze here"; continue; }
  said="$(systemd-analyze verify "$scratch/$name" 2>&1)" || problem "$name: $said"
  [ -z "$said" ] || problem "$name: $said"
done
finish
