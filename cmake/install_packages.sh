#!/usr/bin/env bash
# Sourced by quickstart and check: installs with apt what is missing, and says what.

# Names of the packages in file $1 that are not installed.
missing_packages() {
  local wanted
  for wanted in $(sed 's/#.*//' "$1"); do
    dpkg-query -W -f='${Status}\n' "$wanted" 2>/dev/null | grep -q '^install ok installed' || echo "$wanted"
  done
}

install_packages() {
  local list="$1" missing as_root=() log
  if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "note: no apt here; what the build needs is in $list, by its names in Debian and Ubuntu" >&2
    return 0
  fi
  missing="$(missing_packages "$list" | tr '\n' ' ')"
  missing="${missing% }"
  [ -n "$missing" ] || return 0
  echo "== Installing with apt (a minute or two): $missing"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "error: installing them takes root, and there is no sudo here. As root: apt-get install $missing" >&2
      return 1
    }
    as_root=(sudo)
  fi
  log="$(mktemp)"
  # $missing is several words, on purpose.
  # shellcheck disable=SC2086
  if { "${as_root[@]}" apt-get update && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends $missing; } </dev/null >"$log" 2>&1 && [ -z "$(missing_packages "$list")" ]; then
    rm -f "$log"
    return 0
  fi
  grep -E '^(E|W|Err)[:[]' "$log" | tail -5 >&2 || tail -5 "$log" >&2
  echo "error: apt could not install them (all it said: $log). Is the network there, and is this Debian 12," >&2
  echo "  Ubuntu 24.04 or newer? On Ubuntu most of them are in the universe component: add-apt-repository universe" >&2
  return 1
}
