#!/usr/bin/env bash
# fsctl_reference.sh FSCTL >docs/fsctl.md: what precedes the help of the commands, then that help.
set -euo pipefail
fsctl="$1"
cat <<'END'
# fsctl

One command for everything. What follows the general part is each command's `--help`; after a change
to one, `docs/fsctl_reference.sh build/release/cli/fsctl >docs/fsctl.md` writes this page anew.

- **Where things are.** Models and jobs live in `--store DIR`, else `$FASTSERVE_HOME`, else
  `$XDG_DATA_HOME/fastserve`, else `~/.local/share/fastserve`. A model is named `poems` (the current
  version), `poems@3` (that version) or `poems@best` (a tag).
- **For programs.** With `--json` stdout carries exactly one JSON document, and on failure that is
  `{"error": {"code", "what", "where", "hint"}}`. Results are on stdout; progress, log lines and errors
  are on stderr. [Exit codes](exit-codes.md) tell the kinds of failure apart.
- **On a terminal.** Progress bars and colour appear on a terminal only; `NO_COLOR` or `--color never`
  switches colour off, `--quiet` the bars and log lines. Ctrl-C stops at the next safe point (a training
  job leaves a checkpoint: `fsctl jobs resume`), a second Ctrl-C at once.
- **A cluster.** `--cluster HOST:PORT` or `$FASTSERVE_CLUSTER` lets a cluster's coordinator and its nodes do it, with the
  access token of `--token`, `$FASTSERVE_TOKEN` or, on the coordinator's host, the store's folder: `train`, `models`,
  `compress`, `deploy`, `generate`, `chat`, `jobs`, `node`, `status` and `top`. Models are then the coordinator's, and paths of
  data those of its host; `--cluster ''` does it here. `top --json` prints a document a line.
- **Completion.** `source <(fsctl completion bash)`, the same for zsh, `fsctl completion fish | source`;
  an installed FastServe brings the scripts along.
- **Which instructions.** `FASTSERVE_ISA=portable|avx2|avx512|avx512-vnni|avx512-bf16` forces kernels below what
  the CPU has (`fsctl version` says which are used).

END

help_of() { echo "## $*"; echo; echo '```'; "$fsctl" "${@:2}" --help; echo '```'; echo; }
walk() {
  local word
  for word in $("$fsctl" complete -- "$@" ""); do
    case "$* $word" in "completion "*) continue ;; esac
    help_of fsctl "$@" "$word"
    walk "$@" "$word"
  done
}
help_of fsctl
walk
