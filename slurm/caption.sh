#!/usr/bin/env bash
# Stages of tools/caption.py as arrays of jobs, and what comes behind them. What was ended goes on with the same command.
#   slurm/caption.sh PARTS select SOURCE RUN ... [-- SBATCH OPTIONS]    then a job that chooses among what they gathered
#   slurm/caption.sh PARTS score RUN ... [-- SBATCH OPTIONS]            then a job that decides, and one that reports
#   slurm/caption.sh batches FOLDER --model MODEL ... [-- SBATCH OPTIONS]
# batches: each job answers one file that `caption RUN --write-batches FOLDER` wrote with vLLM on GPUs of one's own; files
# that have their results are left out. Further options are those of `vllm run-batch`. Then: caption RUN --read-results ...
# `-- --array=0-15%4` runs four parts of 16 at a time.
#SBATCH --job-name=pargo-caption
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
USAGE="slurm/caption.sh PARTS select SOURCE RUN ..., PARTS score RUN ..., or batches FOLDER --model MODEL ...; see --help"
case ${1:-}:${2:-} in
stage:*) in_job || die "$DO_NOT_RESTART" "$USAGE" ;; # what submit_behind submits
batches:?*) [ $# -ge 4 ] || die "$DO_NOT_RESTART" "$USAGE" ;;
*:select | *:score)
    [[ $1 =~ ^[1-9][0-9]*$ ]] && [ $# -ge 3 ] || die "$DO_NOT_RESTART" "$USAGE"
    ;;
*) die "$DO_NOT_RESTART" "$USAGE" ;;
esac

submit_array() { # KIND NUMBERS ARGUMENTS...: -> ID of the array
    local user=("${SBATCH_EXTRA[@]}")
    # In the name of an array's log %A is the job and %a the part.
    SBATCH_EXTRA=(--array="$2" --output="$SITE_LOGS/%x-%A_%a.out" "${user[@]}")
    ID=$(submit "$1" caption.sh "${@:3}") && [ -n "$ID" ] || exit "$DO_NOT_RESTART"
}

submit_behind() { # NAME ARGUMENTS...: a job that waits until ID has ended well -> ID
    # Without the second option a job whose parts have failed would wait for ever.
    SBATCH_EXTRA=(--dependency="afterok:$ID" --kill-on-invalid-dep=yes --job-name="pargo-caption-$1")
    ID=$(submit small caption.sh "${@:2}") && [ -n "$ID" ] || exit "$DO_NOT_RESTART"
    echo "$1: job $ID"
}

submit_parts() { # PARTS STAGE ARGUMENTS...
    local kind=small
    [ "$2" = select ] || kind=evaluation # a model that looks at images: a GPU for each part
    submit_array "$kind" "0-$(($1 - 1))" "$@"
    echo "$1 parts of $2: job $ID"
    if [ "$2" = select ]; then
        submit_behind choose stage "${@:2}"
    else
        submit_behind decide stage decide "$3"
        submit_behind report stage report "$3"
    fi
}

unanswered() { # FOLDER -> numbers of its files without results, as sbatch takes them; nothing when there is none
    local file number numbers=()
    for file in "$1"/batch-*.jsonl; do
        number=${file##*batch-} number=${number%.jsonl}
        [[ $number =~ ^[0-9]+$ ]] || continue # no file matched
        [ -f "$1/results-$number.jsonl" ] || numbers+=("$((10#$number))")
    done
    (IFS=, && printf '%s' "${numbers[*]}")
}

submit_batches() { # batches FOLDER OPTIONS...
    local numbers
    [ -f "$2/batch-00001.jsonl" ] || die "$DO_NOT_RESTART" \
        "$2 holds no batch-00001.jsonl: tools/caption.py caption RUN ... --write-batches $2 writes the requests"
    numbers=$(unanswered "$2")
    if [ -n "$numbers" ]; then
        submit_array evaluation "$numbers" "$@"
        echo "files $numbers: job $ID"
    fi
    echo "results: tools/caption.py caption RUN ... --read-results $2/results-*.jsonl"
}

answer_batch() { # FOLDER OPTIONS...: the results are whole or absent
    local number results
    number=$(printf '%05d' "$SLURM_ARRAY_TASK_ID")
    results=$1/results-$number.jsonl
    run_step -m vllm.entrypoints.openai.run_batch -i "$1/batch-$number.jsonl" -o "$results.unfinished" "${@:2}"
    [ "$STATUS" -ne 0 ] || mv -f "$results.unfinished" "$results" || STATUS=$FAILED
    exit "$STATUS"
}

if ! in_job || [ -z "${PARGO_SUBMITTED:-}" ]; then
    in_job && say "submitting the jobs with the values of slurm/site.env"
    if [ "$1" = batches ]; then submit_batches "$@"; else submit_parts "$@"; fi
    exit
fi
# shellcheck disable=SC2034 # read by run_step
RESUMABLE=yes
case $1:$2 in
batches:*) answer_batch "${@:2}" ;;
stage:*) run_process tools/caption.py "${@:2}" ;;
*:select) run_process tools/caption.py "${@:2}" --part "$SLURM_ARRAY_TASK_ID/$1" ;;
*:score) run_process tools/caption.py "${@:2}" --score-part "$SLURM_ARRAY_TASK_ID/$1" ;;
esac
