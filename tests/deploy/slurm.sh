#!/usr/bin/env bash
# The Slurm script, with a pretended fsctl and srun: who is started how, and what is left behind.
source "$(dirname "$0")/../cli/session.sh"
script="$source_dir/deploy/slurm/fastserve.sbatch"
bash -n "$script" || problem "bash does not read the script"
if command -v shellcheck >/dev/null; then
  shellcheck "$script" || problem "shellcheck"
else
  echo "skipped: no shellcheck here"
fi
for option in $(grep -o -- '--[a-z-]*' <(grep 'node start\|--advertise' "$script" | grep -v '^#') | sort -u); do
  "$fsctl" node start --help | grep -q -- "$option\b" || "$fsctl" cluster init --help | grep -q -- "$option\b" ||
    problem "neither node start nor cluster init has $option"
done

mkdir -p "$scratch/bin"
pretend() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$scratch/bin/$1"; chmod +x "$scratch/bin/$1"; }
# shellcheck disable=SC2016
pretend fsctl '
echo "fsctl $* [${FASTSERVE_JOIN_TOKEN:-}] [${FASTSERVE_HOME##*/}]" >>"$CALLS"
case "$1 $2" in
  "cluster init") mkdir -p "$FASTSERVE_HOME/cluster"; echo secret >"$FASTSERVE_HOME/cluster/admin-token" ;;
  "cluster token") echo fsj1-token ;;
  "cluster start")
    n=$(grep -c "cluster start" "$CALLS")
    [ "$n" -gt 1 ] || exit 17  # the first time its port is not free yet
    while [ $# -gt 1 ]; do [ "$1" != --endpoint-file ] || echo host:7070 >"$2"; shift; done
    exec -a "$MARK" sleep 60 ;;
  "node start") [[ "$*" != *-1\ * ]] || exit 11; exec -a "$MARK" sleep 60 ;;
  "train "*) [ "$FASTSERVE_TOKEN" = secret ] || exit 9; for _ in $(seq 100); do [ "$(grep -c "node start" "$CALLS")" -ge 2 ] && break; sleep 0.05; done; exit 3 ;;
esac'
# shellcheck disable=SC2016
pretend srun '
while [[ "$1" == --* ]]; do shift; done
for id in 0 1; do SLURM_PROCID=$id "$@" & done
trap "kill %1 %2 2>/dev/null; wait; exit" TERM
wait'
MARK="pretended-$(basename "$scratch")"
export MARK CALLS="$scratch/calls" SLURM_JOB_ID=7 SLURM_JOB_NAME=poems FASTSERVE_HOME="$scratch/a home"
mkdir -p "$FASTSERVE_HOME"
PATH="$scratch/bin:$PATH" timeout 60 bash "$script" fsctl train --data texts >"$scratch/out" 2>"$scratch/err"
code=$?
[ $code = 3 ] || problem "the job ended in $code instead of its command's 3: $(cat "$scratch/out" "$scratch/err")"
calls() { grep -c -- "$1" "$CALLS"; }
[ "$(calls 'cluster init')" = 1 ] || problem "no init"
[ "$(calls 'cluster start')" = 2 ] || problem "a coordinator that could not start is not started again"
[ "$(calls '--name poems-[01] .*\[fsj1-token\] \[[01]\]')" = 2 ] || problem "nodes: $(cat "$CALLS")"
[ "$(calls 'node start')" = 2 ] || problem "a node whose token is refused is started again: $(cat "$CALLS")"
[ -e "$FASTSERVE_HOME/slurm-7" ] && problem "the token's file is left behind"
sleep 0.2
pgrep -f "$MARK" >/dev/null && problem "processes are left behind"

# The same job again, after a requeue: the cluster that is there is used.
PATH="$scratch/bin:$PATH" timeout 60 bash "$script" fsctl train --data texts >"$scratch/out" 2>"$scratch/err"
[ "$(calls 'cluster init')" = 1 ] || problem "a cluster that is there is made again"
unset FASTSERVE_HOME
must_fail 1 "every host sees" bash "$script"
finish
