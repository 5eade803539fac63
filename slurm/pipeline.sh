#!/usr/bin/env bash
# Pre-training -> export -> fine-tuning -> export -> evaluation, each a job that waits for the one before it:
#   slurm/pipeline.sh [PRETRAIN.yaml FINETUNE.yaml [SHARDS]] [--benchmark NAME=PATH ...] [OPTIONS]
# FINETUNE.yaml's start_from is where the first export goes. SHARDS for the evaluation: default data.validation of FINETUNE.yaml.
# With --benchmark it ends with their table: slurm/evaluate.sh asks into asked/ of the second run, with these OPTIONS of it.
# Finished stages (DONE) are left out, so that the same command continues after a failure. Do not submit it with sbatch.

set -uo pipefail
here=$(dirname "$0")
[ -f "$here/core.sh" ] || { echo "error: slurm/pipeline.sh submits jobs itself; call it without sbatch" >&2 && exit 2; }
# shellcheck source=slurm/core.sh
source "$here/core.sh"
explain_if_asked "$@"
open_project "$here"
# shellcheck source=slurm/training.sh
source slurm/training.sh

files=()
while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    files+=("$1")
    shift
done
case ${1:---benchmark} in --benchmark | --benchmark=*) ;; *) die "$DO_NOT_RESTART" "$1: expected --benchmark NAME=PATH, then its options" ;; esac
pretrain=${files[0]:-ds_configs/pretrain.yaml} finetune=${files[1]:-ds_configs/finetune.yaml}
more=()
[ -z "$SITE_RUNS" ] || more=(--set "output=$SITE_RUNS")
last=''

chain() { # KIND SCRIPT ARGUMENTS...: submit it to run when the job before it has ended well
    local submit=(submit "$1")
    [ "$1" != training ] || submit=(submit_run)
    shift
    SBATCH_EXTRA=()
    # A requeued job keeps its id, so afterok waits until it has ended for the last time. Without the second option the
    # jobs after a failed job would wait for ever.
    [ -z "$last" ] || SBATCH_EXTRA=(--dependency="afterok:$last" --kill-on-invalid-dep=yes)
    last=$("${submit[@]}" "$@") && [ -n "$last" ] || die "$DO_NOT_RESTART" "sbatch refused $*; cancel the jobs above with scancel"
    echo "$*: job $last"
}

enter_environment
read_run "$pretrain" "${more[@]}" || exit "$DO_NOT_RESTART"
[ -e "$RUN_DIR/DONE" ] || check_division "$pretrain"
first=$RUN_DIR
read_run "$finetune" "${more[@]}" || exit "$DO_NOT_RESTART"
[ -n "$START_FROM" ] || die "$DO_NOT_RESTART" "$finetune has no start_from; give it the folder for the first export, such as $first/export"
[ -e "$RUN_DIR/DONE" ] || check_division "$finetune"
shards=${files[2]:-$VALIDATION}

[ -e "$first/DONE" ] || RUN_DIR=$first chain training pretrain.sh "$pretrain"
[ -z "$last" ] && [ -d "$START_FROM" ] || chain small convert.sh "$first" "$START_FROM" --force
[ -e "$RUN_DIR/DONE" ] || chain training finetune.sh "$finetune"
[ -z "$last" ] && [ -d "$RUN_DIR/export" ] || chain small convert.sh "$RUN_DIR" "$RUN_DIR/export" --merge-lora --force
exported=$last
[ -z "$shards" ] || chain evaluation evaluate.sh "$RUN_DIR/export" "$shards" --run "$RUN_DIR/config.yaml"
if [ $# -gt 0 ]; then
    waiting=()
    [ -z "$exported" ] || waiting=(--dependency="afterok:$exported" --kill-on-invalid-dep=yes)
    slurm/evaluate.sh "$RUN_DIR/export" --out "$RUN_DIR/asked" "$@" -- "${waiting[@]}"
fi
