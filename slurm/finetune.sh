#!/usr/bin/env bash
# Fine-tuning: slurm/finetune.sh [RUN.yaml] [--set a.b=c ...] [-- SBATCH OPTIONS], or sbatch slurm/finetune.sh [RUN.yaml] [...].
# The run continues by itself after the end of its time, a preemption, a crash or a lost node; see docs/slurm.md.
# These options are for a plain sbatch only; the job then submits itself again with the values of slurm/site.env.
#SBATCH --job-name=pargo-finetune
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
# shellcheck source=slurm/training.sh
source slurm/training.sh
training finetune.sh ds_configs/finetune.yaml "$@"
