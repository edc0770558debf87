#!/usr/bin/env bash
# What quickstart and check do on a machine that lacks packages, with a pretended apt.
source "$(dirname "$0")/session.sh"
mkdir -p "$scratch/bin" "$scratch/a place"
ln -s "$source_dir" "$scratch/a place/fastserve"
pretend() { printf '#!/bin/sh\n%s\n' "$2" >"$scratch/bin/$1"; chmod +x "$scratch/bin/$1"; }
cat >"$scratch/list" <<END
# a comment
g++
ninja-build  # and why
END
# install WORDS...: runs install_packages on the list where only `bin` decides what apt and sudo do.
install() {
  PATH="$scratch/bin:$PATH" bash -c 'set -euo pipefail; source "$1"; install_packages "$2"' - \
    "$source_dir/cmake/install_packages.sh" "$scratch/list" >"$scratch/out" 2>"$scratch/err"
}
says() { grep -q -- "$2" "$scratch/$1" || problem "$3: $(cat "$scratch/out" "$scratch/err")"; }

pretend dpkg-query "[ -e $scratch/installed ] && echo install ok installed"
pretend apt-get "echo apt-get \"\$@\" >>$scratch/calls; case \"\$1\" in install) touch $scratch/installed ;; esac"
pretend sudo "echo sudo >>$scratch/calls; exec \"\$@\""

pretend id "echo 1000"
install || problem "as a user: $(cat "$scratch/err")"
says out "apt.*g++ ninja-build" "does not say what it installs"
[ "$(tr '\n' ' ' <"$scratch/calls")" = "sudo apt-get update sudo apt-get install -y --no-install-recommends g++ ninja-build " ] ||
  problem "a user's calls: $(cat "$scratch/calls")"
: >"$scratch/calls"
install || problem "with everything there"
[ -s "$scratch/calls" ] || [ -s "$scratch/out" ] && problem "asks apt although nothing is missing"

rm "$scratch/installed"
pretend id "echo 0"
install || problem "as root"
grep -q sudo "$scratch/calls" && problem "root needs no sudo"

rm "$scratch/installed"
pretend apt-get "echo 'Err:1 http://deb.example bookworm'; echo 'E: Unable to locate package g++' >&2; exit 100"
install && problem "a failing apt is passed over"
says err "Unable to locate package" "does not say what apt said"
says err "network" "does not say what to look at"
pretend apt-get "exit 0"
install && problem "packages that are still missing are passed over"

# From another folder, through a path with spaces.
cd "$scratch" || exit 2
"a place/fastserve/quickstart" --help | grep -q -- "--preset" || problem "quickstart --help from elsewhere"
"a place/fastserve/check" --help | grep -q -- "--sanitizers" || problem "check --help from elsewhere"
must_fail 2 "no such file" "a place/fastserve/quickstart" --data nowhere
must_fail 2 "needs a value" "a place/fastserve/quickstart" --data
must_fail 2 "tiny, small" "a place/fastserve/quickstart" --preset tony
must_fail 2 "unknown argument" "a place/fastserve/quickstart" --datta
must_fail 2 "--sanitizers" "a place/fastserve/check" --sanitisers
finish
