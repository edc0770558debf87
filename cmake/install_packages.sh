# Sourced by quickstart and check: installs with apt what is missing, and says what.
install_packages() {
  local list="$1" wanted missing=()
  if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "note: no dpkg here; install the packages of cmake/packages.txt with your package manager" >&2
    return 0
  fi
  for wanted in $(sed 's/#.*//' "$list"); do
    dpkg-query -W -f='${Status}' "$wanted" 2>/dev/null | grep -q 'install ok installed' || missing+=("$wanted")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "error: these packages are missing and this is neither root nor a machine with sudo: ${missing[*]}" >&2; return 1; }
    as_root=(sudo)
  fi
  echo "Installing with apt: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
