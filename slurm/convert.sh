#!/usr/bin/env bash
# A run's newest checkpoint -> a Hugging Face folder: slurm/convert.sh RUN_FOLDER [OUT] [OPTIONS] [-- SBATCH OPTIONS]
# OUT is RUN_FOLDER/export unless given; options are those of tools/convert_checkpoint.py zero-to-hf (--merge-lora, --force).
#SBATCH --job-name=pargo-convert
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
run=${1:-}
[ -n "$run" ] || die "$DO_NOT_RESTART" "which run? slurm/convert.sh RUN_FOLDER [OUT] [OPTIONS]"
shift
out=$run/export
case ${1:-} in
'' | -*) ;;
*)
    out=$1
    shift
    ;;
esac
if in_job; then
    take_over small convert.sh "$run" "$out" "$@"
    run_process tools/convert_checkpoint.py zero-to-hf "$run" "$out" "$@"
fi
[ -d "$run/checkpoints" ] || [ -f "$run/manifest.json" ] || die "$DO_NOT_RESTART" "$run holds no checkpoints"
submit small convert.sh "$run" "$out" "$@"
