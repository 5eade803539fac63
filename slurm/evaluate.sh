#!/usr/bin/env bash
# Held-out loss and the table of questions: slurm/evaluate.sh EXPORT SHARDS [OPTIONS] [-- SBATCH OPTIONS]
# Options are those of tools/evaluate.py. The figures go into the log, and into EXPORT/../evaluation.json unless --json is given.
#SBATCH --job-name=pargo-evaluate
#SBATCH --nodes=1
#SBATCH --time=00:10:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -uo pipefail
# Slurm runs a copy of this file, whose folder says nothing: then the project is where sbatch was called.
here=$(dirname "$0")
[ -f "$here/core.sh" ] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[ -f "$here/core.sh" ] || { echo "error: $here/core.sh is missing: call sbatch in the project's folder" >&2 && exit 2; }
# shellcheck source=slurm/core.sh
source "$here/core.sh"
explain_if_asked "$@"
open_project "$here"

split_arguments "$@"
set -- "${ARGUMENTS[@]}"
[ $# -ge 2 ] || die "$DO_NOT_RESTART" "slurm/evaluate.sh EXPORT SHARDS [OPTIONS]: an exported folder and held-out shards"
if in_job; then
    take_over evaluation evaluate.sh "$@"
    run_process tools/evaluate.py --json "$(dirname "$1")/evaluation.json" "$@"
fi
[ -f "$1/config.json" ] || die "$DO_NOT_RESTART" "$1 is not an exported model; slurm/convert.sh makes one"
submit evaluation evaluate.sh "$@"
