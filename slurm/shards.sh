#!/usr/bin/env bash
# Build MDS shards on many nodes: an array job, each task one part, then one task that merges them.
#
#   job=$(sbatch --parsable --array=0-15 slurm/shards.sh llava data/llava mix665k.json --pictures images)
#   sbatch --dependency=afterok:"${job%%;*}" slurm/shards.sh merge data/llava
#
# The arguments are those of tools/build_shards.py, without --part and --workers. A task that was killed or ran out of
# time: submit the same array again, finished chunks are kept. OUT (or --work, for s3://...) must be on a disk that all
# nodes share. slurm/site.env says what is special about the cluster; it must set PYTHON.
#SBATCH --job-name=shards
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

if [ ! -f slurm/site.env ]; then
    echo "error: slurm/site.env is missing: submit from the repository's folder, and put PYTHON=/path/to/python (an" \
        "interpreter that has the packages) and modules to load into that file" >&2
    exit 2
fi
set -a
# shellcheck disable=SC1091
. slurm/site.env
set +a
: "${PYTHON:?slurm/site.env does not set PYTHON}"
if [ $# -eq 0 ]; then
    echo "error: no arguments; expected those of tools/build_shards.py (see its --help)" >&2
    exit 2
fi

export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
options=()
if [ "$1" != merge ]; then
    options=(--workers "${SLURM_CPUS_PER_TASK:-$(nproc)}")
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
        # Parts are numbered from 0 whatever the array's first number is.
        options+=(--part "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/${SLURM_ARRAY_TASK_COUNT:?}")
    fi
fi
exec "$PYTHON" tools/build_shards.py "$@" "${options[@]}"
