#!/usr/bin/env bash
# Held-out loss and the table of questions: slurm/evaluate.sh EXPORT SHARDS [OPTIONS] [-- SBATCH OPTIONS]
# The figures go into the log, and into EXPORT/../evaluation.json unless --json is given.
# Benchmarks: slurm/evaluate.sh EXPORT --benchmark NAME=PATH ... --out OUT [--ranks N] [OPTIONS] [-- SBATCH OPTIONS]
# N jobs of one process ask (default: SITE_RANKS_PER_NODE), a job after them prints the table (OUT/scores.json). What was
# ended goes on with the same command; `-- --array=0-15%4` runs four jobs of 16 at a time.
# Options are those of tools/evaluate.py.
#SBATCH --job-name=pargo-evaluate
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
[ $# -ge 2 ] || die "$DO_NOT_RESTART" \
    "slurm/evaluate.sh EXPORT SHARDS, or EXPORT --benchmark NAME=PATH ... --out OUT: an exported folder and what it is measured on"

read_benchmarks() { # ARGUMENTS... -> BENCHMARKS (yes, or nothing), OUT, RANKS
    local word before=''
    BENCHMARKS='' OUT='' RANKS=$SITE_RANKS_PER_NODE
    for word in "$@"; do
        case $before in --out) OUT=$word ;; --ranks) RANKS=$word ;; esac
        case $word in
        --benchmark | --benchmark=*) BENCHMARKS=yes ;;
        --out=*) OUT=${word#*=} ;;
        --ranks=*) RANKS=${word#*=} ;;
        esac
        before=$word
    done
    [ -n "$BENCHMARKS" ] || return 0
    [ -n "$OUT" ] || die "$DO_NOT_RESTART" "--benchmark needs --out OUT, where the answers go"
    [[ $RANKS =~ ^[1-9][0-9]*$ ]] || die "$DO_NOT_RESTART" "--ranks $RANKS: a number of jobs is expected"
}

submit_benchmarks() { # ARGUMENTS...: the array that asks, and the table behind it, once all parts have ended well
    local id user=("${SBATCH_EXTRA[@]}")
    # arrays: %A is the job, %a the part
    SBATCH_EXTRA=(--array="0-$((RANKS - 1))" --output="$SITE_LOGS/%x-%A_%a.out" "${user[@]}")
    id=$(submit evaluation evaluate.sh "$@") && [ -n "$id" ] || exit "$DO_NOT_RESTART"
    echo "$RANKS parts that ask: job $id"
    # Without the second option a table whose parts have failed would wait for ever.
    SBATCH_EXTRA=(--dependency="afterok:$id" --kill-on-invalid-dep=yes --job-name=pargo-score)
    id=$(submit small evaluate.sh --score "$OUT") && [ -n "$id" ] || exit "$DO_NOT_RESTART"
    echo "the table of $OUT: job $id"
}

read_benchmarks "$@"
if in_job && [ "$1" = --score ]; then
    run_process tools/evaluate.py "$@"
elif in_job && [ -n "$BENCHMARKS" ] && [ -n "${PARGO_SUBMITTED:-}" ]; then
    # shellcheck disable=SC2034 # read by run_process
    RESUMABLE=yes
    run_process tools/evaluate.py "$@" --rank "$SLURM_ARRAY_TASK_ID" --ranks "$RANKS"
elif in_job && [ -z "$BENCHMARKS" ]; then
    take_over evaluation evaluate.sh "$@"
    run_process tools/evaluate.py --json "$(dirname "$1")/evaluation.json" "$@"
fi
in_job && say "submitting the parts that ask, and the table, with the values of slurm/site.env"
# What a job waits for may be the export.
[ -f "$1/config.json" ] || [[ ${SBATCH_EXTRA[*]} == *--dependency* ]] ||
    die "$DO_NOT_RESTART" "$1 is not an exported model; slurm/convert.sh makes one"
if [ -n "$BENCHMARKS" ]; then
    submit_benchmarks "$@"
else
    submit evaluation evaluate.sh "$@"
fi
