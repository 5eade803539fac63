# Shared by the scripts of this folder: it reads the site's values, enters its environment, and submits jobs. It is
# sourced and never run.
# shellcheck shell=bash
#
# No script here uses `set -e`, because an interrupted `wait` returns 138, and the shell would end while srun continues.

# shellcheck source=slurm/job.sh
source "${BASH_SOURCE[0]%/*}/job.sh"

NEEDED=(SITE_NODES SITE_GPUS_PER_NODE SITE_RANKS_PER_NODE SITE_CPUS_PER_TASK SITE_TIME SITE_SMALL_CPUS SITE_SMALL_TIME
    SITE_SIGNAL SITE_SIGNAL_LEAD SITE_MAX_RESTARTS SITE_LOGS SITE_SCRATCH SITE_PYTHON)
OPTIONAL=(SITE_PARTITION SITE_ACCOUNT SITE_QOS SITE_MEMORY SITE_EXCLUSIVE SITE_SMALL_PARTITION SITE_SMALL_MEMORY
    SITE_PREFLIGHT SITE_PREFLIGHT_FREE_GB SITE_RUNS SITE_CACHE SITE_S3_ENDPOINT SITE_WANDB SITE_GPU SITE_NETWORK)
ARRAYS=(SITE_SBATCH_OPTIONS SITE_SRUN_OPTIONS SITE_CONTAINER_FLAGS SITE_CONTAINER_COMMAND)
# Exit statuses of the scripts, see docs/slurm.md.
FAILED=1 DO_NOT_RESTART=2 STOPPED=3
SECRET_NAMES='KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE'
SHOWN_NAMES='^(SLURM|SBATCH|PARGO|NCCL|TORCH|CUDA|OMP|DS|HF|WANDB|S3|AWS|PYTHON|MASTER|TQDM|UCX|FI)_|^(PATH|PYTHONPATH|LD_LIBRARY_PATH|LOADEDMODULES|VIRTUAL_ENV|TMPDIR)$'

say() { printf '[%s] %s\n' "$(date '+%F %T')" "$*"; }

die() { # STATUS MESSAGE
    printf 'error: %s\n' "$2" >&2
    exit "$1"
}

explain_if_asked() { # ARGUMENTS of the script: with --help among them, show its first lines and end
    local argument
    for argument in "$@"; do
        case $argument in
        --) return ;;
        -h | --help)
            sed -n '2,/^[^#]\|^$\|^#SBATCH/{/^# /s/^# //p}' "$0"
            exit 0
            ;;
        esac
    done
}

# A job runs Slurm's copy of the script; this file is not in the folder of the copy.
in_job() { [ ! -f "$(dirname "$0")/core.sh" ]; }

open_project() { # FOLDER of this file
    # Older shells treat an empty array as a variable that is not set.
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "$DO_NOT_RESTART" "bash 4.4 or newer is needed, this is $BASH_VERSION"
    PROJECT=$(cd "$1/.." && pwd) || exit "$DO_NOT_RESTART"
    cd "$PROJECT" || exit "$DO_NOT_RESTART"
    export PYTHONPATH="$PROJECT${PYTHONPATH:+:$PYTHONPATH}"
    read_site
    SBATCH_EXTRA=()
    # The words of each `srun` between its options and the program.
    STEP=("${SITE_SRUN_OPTIONS[@]}" "${SITE_CONTAINER_FLAGS[@]}" "${SITE_CONTAINER_COMMAND[@]}")
}

read_site() {
    local name missing=()
    [ -f slurm/site.env ] || die "$DO_NOT_RESTART" \
        "slurm/site.env is missing: cp slurm/site.env.example slurm/site.env, put in your cluster's values, then slurm/check.sh"
    # Variables of these names in the caller's environment would hide that site.env lacks a value.
    for name in "${NEEDED[@]}" "${OPTIONAL[@]}"; do printf -v "$name" ''; done
    SITE_SBATCH_OPTIONS=() SITE_SRUN_OPTIONS=() SITE_CONTAINER_FLAGS=() SITE_CONTAINER_COMMAND=()
    # shellcheck disable=SC2329 # enter_environment calls it, or the one of site.env
    site_environment() { :; }
    every_line source slurm/site.env
    [ -z "$FAILED_LINE" ] || die "$DO_NOT_RESTART" "slurm/site.env: $FAILED_LINE"
    for name in "${NEEDED[@]}"; do [ -n "${!name}" ] || missing+=("$name"); done
    [ "${#missing[@]}" -eq 0 ] || die "$DO_NOT_RESTART" "slurm/site.env does not set ${missing[*]}; see slurm/site.env.example"
    SITE_SMALL_PARTITION=${SITE_SMALL_PARTITION:-$SITE_PARTITION}
}

every_line() { # COMMAND of site.env...: as with `set -e`, but FAILED_LINE says which of its own lines failed, or nothing
    local status number=''
    FAILED_LINE=''
    set -E
    # Only lines that COMMAND itself has: what it calls (module, conda) may fail inside and yet end well. Bash keeps the
    # trap quiet in all that is called from a condition: this function and its callers must not be, neither by `|| die`.
    trap '[ "${FUNCNAME[1]:-}" != every_line ] || number=${number:-$LINENO}' ERR
    "$@"
    status=$?
    trap - ERR
    set +E
    if [ -n "$number" ]; then
        FAILED_LINE="line $number failed: $(sed -n "${number}s/^ *//p" slurm/site.env)"
    elif [ "$status" -ne 0 ]; then
        FAILED_LINE="it ended with status $status, see above"
    fi
}

# Submitting

make_log_folder() { # Slurm makes none: the job would end at once, without a log
    mkdir -p "$SITE_LOGS" || die "$DO_NOT_RESTART" "the log folder SITE_LOGS=$SITE_LOGS cannot be made"
}

site_options() { # training | small | evaluation -> OPTIONS
    local partition=$SITE_SMALL_PARTITION
    OPTIONS=(--requeue --open-mode=append --export=ALL --chdir="$PROJECT")
    if [ "$1" = training ]; then
        partition=$SITE_PARTITION
        OPTIONS+=(--nodes="$SITE_NODES" --time="$SITE_TIME" --signal="B:$SITE_SIGNAL@$SITE_SIGNAL_LEAD")
        case $SITE_NODES in
        # For a range of nodes, Slurm allocates the smallest number that has room for the tasks.
        *-*) OPTIONS+=(--mincpus="$((SITE_RANKS_PER_NODE * SITE_CPUS_PER_TASK))") ;;
        *) OPTIONS+=(--ntasks-per-node="$SITE_RANKS_PER_NODE" --cpus-per-task="$SITE_CPUS_PER_TASK") ;;
        esac
        [ "$SITE_GPUS_PER_NODE" = 0 ] || OPTIONS+=(--gpus-per-node="$SITE_GPUS_PER_NODE")
        [ -z "$SITE_MEMORY" ] || OPTIONS+=(--mem="$SITE_MEMORY")
        [ "$SITE_EXCLUSIVE" != yes ] || OPTIONS+=(--exclusive)
    else
        OPTIONS+=(--nodes=1 --ntasks=1 --cpus-per-task="$SITE_SMALL_CPUS" --time="$SITE_SMALL_TIME"
            --signal="B:$SITE_SIGNAL@$SITE_SIGNAL_LEAD")
        [ -z "$SITE_SMALL_MEMORY" ] || OPTIONS+=(--mem="$SITE_SMALL_MEMORY")
        if [ "$1" = evaluation ]; then
            partition=$SITE_PARTITION
            [ "$SITE_GPUS_PER_NODE" = 0 ] || OPTIONS+=(--gpus-per-node=1)
        fi
    fi
    [ -z "$partition" ] || OPTIONS+=(--partition="$partition")
    [ -z "$SITE_ACCOUNT" ] || OPTIONS+=(--account="$SITE_ACCOUNT")
    [ -z "$SITE_QOS" ] || OPTIONS+=(--qos="$SITE_QOS")
    OPTIONS+=("${SITE_SBATCH_OPTIONS[@]}")
}

submit() { # KIND SCRIPT [ARGUMENTS...]; the array SBATCH_EXTRA holds further options; prints the job's id
    local kind=$1 script=$2
    shift 2
    make_log_folder
    site_options "$kind"
    (
        # Within another job, the variables SLURM_* of that job would count as options of the new one.
        local conf=${SLURM_CONF:-} name
        for name in ${!SLURM_@}; do unset "$name"; done
        [ -z "$conf" ] || export SLURM_CONF=$conf
        # A file STOP that is younger than this time is meant for the job. --parsable adds ;CLUSTER on federated sites.
        PARGO_SUBMITTED=${SUBMITTED:-$(date +%s)} sbatch --parsable --output="$SITE_LOGS/%x-%j.out" "${OPTIONS[@]}" "${SBATCH_EXTRA[@]}" \
            "slurm/$script" "$@" | cut -d ';' -f 1
    )
}

split_arguments() { # ARGUMENTS... -> ARGUMENTS (before --), SBATCH_EXTRA (after it)
    ARGUMENTS=() SBATCH_EXTRA=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        ARGUMENTS+=("$1")
        shift
    done
    [ $# -eq 0 ] || SBATCH_EXTRA=("${@:2}")
}

# The site's environment

enter_environment() {
    # The activation of modules and conda uses variables that are not set.
    set +u
    every_line site_environment
    [ -z "$FAILED_LINE" ] || die "$DO_NOT_RESTART" \
        "site_environment of slurm/site.env: $FAILED_LINE (where that does no harm, write || true behind it)"
    set -u
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TQDM_MININTERVAL="${TQDM_MININTERVAL:-10}"
    [ -z "$SITE_S3_ENDPOINT" ] || export S3_ENDPOINT_URL="$SITE_S3_ENDPOINT"
    export TMPDIR="${TMPDIR:-$SITE_SCRATCH}"
}

python_here() { # one Python process in the site's environment
    local status
    if [ "${#SITE_CONTAINER_FLAGS[@]}" -gt 0 ]; then
        [ -n "${SLURM_JOB_ID:-}" ] || return 75 # pyxis starts containers for steps only
        srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 "${SITE_CONTAINER_FLAGS[@]}" "$SITE_PYTHON" "$@"
    else
        "${SITE_CONTAINER_COMMAND[@]}" "$SITE_PYTHON" "$@"
    fi
    status=$?
    case $status in 126 | 127) python_fault "cannot be run" ;; esac
    return "$status"
}

python_fault() { # WHAT IS WRONG
    echo "error: slurm/site.env: SITE_PYTHON=$SITE_PYTHON $1; see above, and what site_environment and the container do" >&2
}

read_run() { # RUN.yaml [--set ...] -> RUN_DIR PACKS START_FROM VALIDATION; 2 and the faults when it cannot be used
    local text status
    local -a facts
    text=$(python_here slurm/run_facts.py "$@")
    status=$?
    case $status in
    0) ;;
    2 | 75 | 126 | 127) return "$status" ;;
    *)
        [ -n "$ASKED" ] || python_fault "could not read the run file (status $status)"
        return "$status"
        ;;
    esac
    mapfile -t facts <<<"$text"
    RUN_DIR=${facts[0]} PACKS=${facts[1]} START_FROM=${facts[2]:-} VALIDATION=${facts[3]:-}
}

check_division() { # RUN.yaml: ranks of one node must divide its packs, or those of no number of nodes do
    [ $((PACKS % SITE_RANKS_PER_NODE)) -eq 0 ] || die "$DO_NOT_RESTART" \
        "$1: batch.packs_per_step=$PACKS divides over no number of nodes with SITE_RANKS_PER_NODE=$SITE_RANKS_PER_NODE ranks (slurm/site.env) each; make it a multiple"
}
