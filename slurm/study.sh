#!/usr/bin/env bash
# A study's cells as an array: slurm/study.sh STUDY.yaml SIZE [OPTIONS of tools/study.py] [-- SBATCH OPTIONS]
# Each part runs one cell (a variant and a seed: all stages, export, questions) on one node; the job after them writes the
# report. `-- --array=0-20%4` runs four at a time. A part that was ended goes on where it was; what is done is left out.
#SBATCH --job-name=pargo-study
#SBATCH --nodes=1
#SBATCH --time=00:10:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

set -uo pipefail
# Slurm runs a copy of this file in another folder; then the project is the folder in which sbatch was called.
here=$(dirname "$0")
[ -f "$here/core.sh" ] || here=${SLURM_SUBMIT_DIR:-.}/slurm
[ -f "$here/core.sh" ] || { echo "error: $here/core.sh is missing: call sbatch in the project's folder" >&2 && exit 2; }
# shellcheck source=slurm/core.sh
source "$here/core.sh"
explain_if_asked "$@"
open_project "$here"

split_arguments "$@"
set -- "${ARGUMENTS[@]}"
[ $# -ge 2 ] || die "$DO_NOT_RESTART" "slurm/study.sh STUDY.yaml SIZE: a study file and quick, small, gpu or full"
study=$1 size=$2
shift 2

submit_cells() { # the array over the cells without a result, and the report behind it
    local id numbers user=("${SBATCH_EXTRA[@]}")
    enter_environment
    numbers=$(python_here tools/study.py "$study" --size "$size" --list | sed -nE 's/^([0-9]+) .*/\1/p' | paste -sd ,) &&
        python_here tools/study.py "$study" --size "$size" --dry-run >/dev/null || exit "$DO_NOT_RESTART"
    if [ -n "$numbers" ]; then
        # arrays: %A is the job, %a the cell. A cell has a node to itself, as training has; but for one node.
        SBATCH_EXTRA=(--nodes=1 --array="$numbers" --output="$SITE_LOGS/%x-%A_%a.out" "${user[@]}")
        id=$(submit training study.sh "$study" "$size" "$@") && [ -n "$id" ] || exit "$DO_NOT_RESTART"
        echo "cells $numbers: job $id"
        # The report is also written after failed cells; it says what is missing.
        SBATCH_EXTRA=(--dependency="afterany:$id" --job-name=pargo-study-report)
    fi
    id=$(submit small study.sh "$study" "$size" --report) && [ -n "$id" ] || exit "$DO_NOT_RESTART"
    echo "report: job $id"
}

in_job || { submit_cells "$@" && exit; }
if [ -z "${PARGO_SUBMITTED:-}" ]; then
    say "submitting an array of cells and the report with the values of slurm/site.env"
    submit_cells "$@"
    exit
fi
# shellcheck disable=SC2034 # read by run_process
RESUMABLE=yes
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    set -- "$@" --cell "$SLURM_ARRAY_TASK_ID" --processes "$SITE_RANKS_PER_NODE"
    SITE_SMALL_CPUS=$((SITE_RANKS_PER_NODE * SITE_CPUS_PER_TASK)) # one task of srun, which starts all ranks
fi
run_process tools/study.py "$study" --size "$size" "$@"
