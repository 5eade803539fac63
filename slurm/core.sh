# Shared by the scripts of this folder: the site's values, submitting, and what a job says first. Sourced, never run.
# shellcheck shell=bash
#
# No script here uses `set -e`: an interrupted `wait` returns 138, and the shell would leave srun behind.

NEEDED=(SITE_NODES SITE_GPUS_PER_NODE SITE_RANKS_PER_NODE SITE_CPUS_PER_TASK SITE_TIME SITE_SMALL_CPUS SITE_SMALL_TIME
    SITE_SIGNAL SITE_SIGNAL_LEAD SITE_MAX_RESTARTS SITE_LOGS SITE_SCRATCH SITE_PYTHON)
OPTIONAL=(SITE_PARTITION SITE_ACCOUNT SITE_QOS SITE_MEMORY SITE_EXCLUSIVE SITE_SMALL_PARTITION SITE_SMALL_MEMORY
    SITE_PREFLIGHT SITE_PREFLIGHT_FREE_GB SITE_RUNS SITE_CACHE SITE_S3_ENDPOINT SITE_WANDB)
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

# A job runs Slurm's copy of the script, beside which this file does not lie.
in_job() { [ ! -f "$(dirname "$0")/core.sh" ]; }

open_project() { # FOLDER of this file
    # Older shells take an empty array for a name that is not set.
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "$DO_NOT_RESTART" "bash 4.4 or newer is needed, this is $BASH_VERSION"
    PROJECT=$(cd "$1/.." && pwd) || exit "$DO_NOT_RESTART"
    cd "$PROJECT" || exit "$DO_NOT_RESTART"
    export PYTHONPATH="$PROJECT${PYTHONPATH:+:$PYTHONPATH}"
    read_site
    SBATCH_EXTRA=()
    # What stands in each `srun` between its own options and the program.
    STEP=("${SITE_SRUN_OPTIONS[@]}" "${SITE_CONTAINER_FLAGS[@]}" "${SITE_CONTAINER_COMMAND[@]}")
}

read_site() {
    local name missing=()
    [ -f slurm/site.env ] || die "$DO_NOT_RESTART" \
        "slurm/site.env is missing: cp slurm/site.env.example slurm/site.env, put in your cluster's values, then slurm/check.sh"
    # What a caller's environment holds under these names would hide a value that site.env lacks.
    for name in "${NEEDED[@]}" "${OPTIONAL[@]}"; do printf -v "$name" ''; done
    SITE_SBATCH_OPTIONS=() SITE_SRUN_OPTIONS=() SITE_CONTAINER_FLAGS=() SITE_CONTAINER_COMMAND=()
    # shellcheck disable=SC2329 # enter_environment calls it, or the one of site.env
    site_environment() { :; }
    # shellcheck source=slurm/site.env.example
    source slurm/site.env || die "$DO_NOT_RESTART" "slurm/site.env cannot be read by bash"
    for name in "${NEEDED[@]}"; do [ -n "${!name}" ] || missing+=("$name"); done
    [ "${#missing[@]}" -eq 0 ] || die "$DO_NOT_RESTART" "slurm/site.env does not set ${missing[*]}; see slurm/site.env.example"
    SITE_SMALL_PARTITION=${SITE_SMALL_PARTITION:-$SITE_PARTITION}
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
        # Of a range, Slurm gives as few nodes as hold the tasks that it was told of.
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
        # Within a job, its own SLURM_* would pass for this job's options.
        local conf=${SLURM_CONF:-} name
        for name in ${!SLURM_@}; do unset "$name"; done
        [ -z "$conf" ] || export SLURM_CONF=$conf
        # --parsable adds ;CLUSTER on federated sites
        PARGO_SUBMITTED=1 sbatch --parsable --output="$SITE_LOGS/%x-%j.out" "${OPTIONS[@]}" "${SBATCH_EXTRA[@]}" \
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

take_over() { # KIND SCRIPT [ARGUMENTS...]: a job that plain `sbatch` started asks once more, with the site's values
    local wrong id
    [ -z "${PARGO_SUBMITTED:-}" ] || return 0
    wrong=$(allocation_faults "$1")
    [ -n "$wrong" ] || return 0
    say "job $SLURM_JOB_ID is not what slurm/site.env asks for: $wrong. Submitting again with the site's values."
    id=$(submit "$@") && [ -n "$id" ] || die "$DO_NOT_RESTART" "sbatch refused the job; see above"
    say "job $id takes over (log: $SITE_LOGS); this one ends. slurm/$2 without sbatch spares the detour."
    exit 0
}

allocation_faults() { # KIND; prints what differs from the site's values
    local nodes=1 gpus=0 time=$SITE_SMALL_TIME partition=$SITE_SMALL_PARTITION cpus=$SITE_SMALL_CPUS found
    case $1 in
    training)
        nodes=$SITE_NODES gpus=$SITE_GPUS_PER_NODE time=$SITE_TIME partition=$SITE_PARTITION
        cpus=$((SITE_CPUS_PER_TASK * SITE_RANKS_PER_NODE))
        ;;
    evaluation) gpus=$((SITE_GPUS_PER_NODE > 0)) partition=$SITE_PARTITION ;;
    esac
    case ",$partition," in
    ,, | *",$SLURM_JOB_PARTITION,"*) ;;
    *) printf 'partition %s instead of %s; ' "$SLURM_JOB_PARTITION" "$partition" ;;
    esac
    if [ "$SLURM_JOB_NUM_NODES" -lt "${nodes%-*}" ] || [ "$SLURM_JOB_NUM_NODES" -gt "${nodes#*-}" ]; then
        printf '%s nodes instead of %s; ' "$SLURM_JOB_NUM_NODES" "$nodes"
    fi
    [ "${SLURM_GPUS_ON_NODE:-0}" -eq "$gpus" ] || printf '%s GPUs a node instead of %s; ' "${SLURM_GPUS_ON_NODE:-0}" "$gpus"
    [ "${SLURM_CPUS_ON_NODE:-0}" -ge "$cpus" ] || printf '%s CPUs a node instead of %s; ' "${SLURM_CPUS_ON_NODE:-0}" "$cpus"
    found=$(job_field TimeLimit)
    [ "$(in_seconds "$found")" = "$(in_seconds "$time")" ] || printf 'time %s instead of %s; ' "$found" "$time"
}

job_field() { # NAME [JOB]; a field of `scontrol show job`
    scontrol show job -o "${2:-$SLURM_JOB_ID}" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

in_seconds() { # Slurm's times: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED
    local time=$1 days=0 piece
    local -a pieces
    case $time in
    '' | *[!0-9:-]*) echo 999999999 && return ;;
    *-*) days=${time%%-*} time=${time#*-} ;;
    esac
    IFS=: read -r -a pieces <<<"$time"
    for piece in "${!pieces[@]}"; do pieces[piece]=$((10#${pieces[piece]})); done
    if [ "$1" != "$time" ] || [ "${#pieces[@]}" -eq 3 ]; then
        echo $((days * 86400 + pieces[0] * 3600 + ${pieces[1]:-0} * 60 + ${pieces[2]:-0}))
    else
        echo $((pieces[0] * 60 + ${pieces[1]:-0}))
    fi
}

# In a job

enter_environment() {
    # modules and conda's activation use variables that are not set
    set +u
    site_environment || die "$FAILED" "site_environment of slurm/site.env failed"
    set -u
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TQDM_MININTERVAL="${TQDM_MININTERVAL:-10}"
    [ -z "$SITE_S3_ENDPOINT" ] || export S3_ENDPOINT_URL="$SITE_S3_ENDPOINT"
    export TMPDIR="${TMPDIR:-$SITE_SCRATCH}"
}

python_here() { # one Python process in the site's environment
    if [ "${#SITE_CONTAINER_FLAGS[@]}" -gt 0 ]; then
        [ -n "${SLURM_JOB_ID:-}" ] || return 75 # pyxis starts containers for steps only
        srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=1 "${SITE_CONTAINER_FLAGS[@]}" "$SITE_PYTHON" "$@"
    else
        "${SITE_CONTAINER_COMMAND[@]}" "$SITE_PYTHON" "$@"
    fi
}

read_run() { # RUN.yaml [--set ...] -> RUN_DIR PACKS START_FROM HELD_OUT; 2 and the faults when it cannot be used
    local text status
    local -a facts
    text=$(python_here slurm/run_facts.py "$@")
    status=$?
    [ "$status" -eq 0 ] || return "$status"
    mapfile -t facts <<<"$text"
    RUN_DIR=${facts[0]} PACKS=${facts[1]} START_FROM=${facts[2]:-} HELD_OUT=${facts[3]:-}
}

describe_job() { # what was run, where, with which versions and environment; no secrets
    local name
    say "job $SLURM_JOB_ID ($SLURM_JOB_NAME), start ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST, in $PROJECT"
    say "revision $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', with local changes')"
    python_here - <<'PYTHON'
import importlib.metadata, platform
found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
names = ("torch", "deepspeed", "transformers", "mosaicml-streaming", "peft", "timm", "wandb", "nvidia-nccl-cu12", "nvidia-nccl-cu13")
print("Python", platform.python_version(), *(f"{name} {found[name]}" for name in names if name in found))
PYTHON
    echo "environment:"
    for name in $(compgen -e | grep -E "$SHOWN_NAMES" | grep -Ev "$SECRET_NAMES"); do
        # an address may hold a password too
        printf '  %s=%q\n' "$name" "${!name}" | sed -E 's#(://)[^/@[:space:]]*@#\1...@#g'
    done
}

run_process() { # TOOL [ARGUMENTS...]: one process; ends this script with its status, or back in the queue with RESUMABLE=yes
    local pid asked='' status=0 late
    trap 'asked=yes' "$SITE_SIGNAL" TERM
    enter_environment
    describe_job
    [ "$SITE_GPUS_PER_NODE" != 0 ] || export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=''
    say "$*"
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SITE_SMALL_CPUS" "${STEP[@]}" "$SITE_PYTHON" "$@" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid"
        status=$?
        [ -z "$asked" ] || scancel --signal=TERM "$SLURM_JOB_ID" # the step; this script is not meant
    done
    wait "$pid" 2>/dev/null
    late=$?
    [ "$late" -eq 127 ] || status=$late # 127: the first wait had it
    say "ended with status $status"
    if [ -n "$asked" ] && [ "$status" -ne 0 ] && [ "${RESUMABLE:-}" = yes ] && ! given_up; then requeue ""; fi
    exit "$status"
}

requeue() { # NODES TO LEAVE OUT, or nothing in quotes; the last act: Slurm ends this script at once
    local ended=''
    # By the script even after a preemption: when all ends within the grace, Slurm takes the job for failed.
    # Slurm's SIGTERM must set off nothing any more, only tell that the job is put back.
    trap 'ended=yes' TERM
    trap '' "$SITE_SIGNAL"
    scontrol requeue "$SLURM_JOB_ID" || die "$FAILED" "Slurm refused to requeue job $SLURM_JOB_ID (JobRequeue=0?): submit it again by hand"
    # Possible only while the job waits, which it does from now on.
    [ -z "$1" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$1" || say "could not exclude $1"
    while [ -z "$ended" ]; do sleep 1; done
    exit "$FAILED"
}

given_up() { # whether the job ends because of scancel: then it must not come back
    local start limit
    # Both scancel and the end of the time show as COMPLETING, but a job that is preempted still runs in its grace.
    case $(job_field JobState) in
    CANCELLED*) return 0 ;;
    COMPLETING) ;;
    *) return 1 ;;
    esac
    start=$(date -d "$(job_field StartTime)" +%s 2>/dev/null) limit=$(in_seconds "$(job_field TimeLimit)")
    [ $(($(date +%s) - ${start:-0})) -lt "$limit" ]
}
