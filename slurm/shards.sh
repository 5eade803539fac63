#!/usr/bin/env bash
# Build shards on many nodes: slurm/shards.sh PARTS SOURCE OUT ... [-- SBATCH OPTIONS]
# SOURCE OUT ... is what tools/build_shards.py takes, for a SOURCE that can be built in parts: all but mixture and scenes.
# An array job builds the parts, a job after it merges them (and measures lengths, with --run RUN.yaml).
# `-- --array=0-15%4` runs four parts of 16 at a time. A part that was interrupted continues.
#SBATCH --job-name=pargo-shards
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
[ $# -ge 3 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] ||
    die "$DO_NOT_RESTART" "slurm/shards.sh PARTS SOURCE OUT ...: a number of parts, then as for tools/build_shards.py"
parts=$1
shift
case $1 in
mixture | scenes | lengths) die "$DO_NOT_RESTART" "slurm/shards.sh: $1 is not built in parts; call tools/build_shards.py $1 in one job" ;;
esac

submit_parts() { # the array, and the merge that waits until all of it has ended well
    local id merge=(merge "$2") user=("${SBATCH_EXTRA[@]}") own=() word take=''
    for word in "$@"; do # what the merge must know of the parts, too; --run is the merge's alone
        case $take in
        --run) merge+=("$take" "$word") ;;
        --work) merge+=("$take" "$word") own+=("$word") ;;
        *) case $word in
            --run=*) merge+=("$word") ;;
            --work=*) merge+=("$word") own+=("$word") ;;
            --run) ;;
            *) own+=("$word") ;;
            esac ;;
        esac
        take=$word
    done
    set -- "${own[@]}"
    # In the name of an array's log %A is the job and %a the part.
    SBATCH_EXTRA=(--array="0-$((parts - 1))" --output="$SITE_LOGS/%x-%A_%a.out" "${user[@]}")
    id=$(submit small shards.sh "$parts" "$@") && [ -n "$id" ] || exit "$DO_NOT_RESTART"
    echo "parts: job $id"
    # Without the second option a merge whose parts have failed would wait for ever.
    SBATCH_EXTRA=(--dependency="afterok:$id" --kill-on-invalid-dep=yes --job-name=pargo-merge)
    id=$(submit small shards.sh 1 "${merge[@]}") && [ -n "$id" ] || exit "$DO_NOT_RESTART"
    echo "merge: job $id"
}

in_job || { submit_parts "$@" && exit; }
if [ -z "${PARGO_SUBMITTED:-}" ]; then
    say "submitting an array of $parts parts and the merge with the values of slurm/site.env"
    submit_parts "$@"
    exit
fi
# shellcheck disable=SC2034 # read by run_process
RESUMABLE=yes
[ "$1" = merge ] || set -- "$@" --part "$SLURM_ARRAY_TASK_ID/$parts"
run_process tools/build_shards.py "$@"
