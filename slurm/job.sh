# What a job does besides its program: it submits itself again after a plain sbatch, prints what it is, reacts to signals,
# and goes back into the queue. core.sh sources this file; it is never run.
# shellcheck shell=bash

# The last part of an array has the number of the array, by which Slurm's commands mean all parts.
JOB=${SLURM_JOB_ID:-}
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

take_over() { # KIND SCRIPT [ARGUMENTS...]: a job that plain `sbatch` started asks once more, with the site's values
    local wrong id
    [ -z "${PARGO_SUBMITTED:-}" ] || return 0
    wrong=$(allocation_faults "$1")
    [ -n "$wrong" ] || return 0
    say "job $SLURM_JOB_ID is not what slurm/site.env asks for: $wrong. Submitting again with the site's values."
    SUBMITTED=$(submission_time)
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
    scontrol show job -o "${2:-$JOB}" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

submission_time() { # in seconds since 1970; 0 when Slurm does not say
    date -d "$(job_field SubmitTime)" +%s 2>/dev/null || echo 0
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
    [ $? -lt 126 ] || exit "$DO_NOT_RESTART"
    echo "environment:"
    for name in $(compgen -e | grep -E "$SHOWN_NAMES" | grep -Ev "$SECRET_NAMES"); do
        # An address may contain a password, too.
        printf '  %s=%q\n' "$name" "${!name}" | sed -E 's#(://)[^/@[:space:]]*@#\1...@#g'
    done
}

# Signals. Slurm sends SITE_SIGNAL to this script before the time is up, SIGTERM when it ends the job.

ASKED='' PID='' WHEN_ASKED=: SUBMITTED=''

heed_signals() { trap on_signal "$SITE_SIGNAL" TERM; }

on_signal() {
    [ -n "$ASKED" ] || say "asked to stop"
    ASKED=yes
    [ -z "$PID" ] || "$WHEN_ASKED"
}

attended() { # WHAT TO DO WHEN ASKED TO STOP, COMMAND... -> STATUS
    local late
    WHEN_ASKED=$1 STATUS=0
    # In the background, because bash runs no trap while a program runs in the foreground.
    "${@:2}" &
    PID=$!
    [ -z "$ASKED" ] || "$WHEN_ASKED"
    # A signal interrupts `wait`, which then does not return the status of the command. So the loop continues until the
    # process has ended.
    while kill -0 "$PID" 2>/dev/null; do
        wait "$PID"
        STATUS=$?
    done
    wait "$PID" 2>/dev/null
    late=$?
    [ "$late" -eq 127 ] || STATUS=$late # 127: the first wait had it
    PID=''
}

run_process() { # TOOL [ARGUMENTS...]: one process, with whose status this script ends
    run_step "$@"
    exit "$STATUS"
}

run_step() { # TOOL [ARGUMENTS...] -> STATUS of one process; ends this script, back in the queue, when RESUMABLE=yes
    heed_signals
    enter_environment
    describe_job
    [ "$SITE_GPUS_PER_NODE" != 0 ] || export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=''
    say "$*"
    STATUS=$FAILED
    [ -n "$ASKED" ] || attended ask_step \
        srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SITE_SMALL_CPUS" "${STEP[@]}" "$SITE_PYTHON" "$@"
    say "ended with status $STATUS"
    if [ -n "$ASKED" ] && [ "$STATUS" -ne 0 ] && [ "${RESUMABLE:-}" = yes ]; then requeue ""; fi
}

ask_step() { scancel --signal=TERM "$JOB"; } # the step; this script is not meant

# Back into the queue

requeue() { # NODES TO LEAVE OUT, or nothing in quotes; the last act: Slurm ends this script at once
    local ended='' out
    leave_to_slurm
    # The script requeues the job even after a preemption: if everything ends within the grace time, Slurm assumes that the
    # job has failed. Slurm's SIGTERM must not trigger anything now; it only shows that the job was requeued.
    trap 'ended=yes' TERM
    trap '' "$SITE_SIGNAL"
    out=$(job_field ExcNodeList) # those that the job was submitted without stay out
    # This SIGTERM may also end scontrol before it has reported success.
    scontrol requeue "$JOB" || [ -n "$ended" ] || die "$FAILED" "Slurm refused to requeue job $JOB (--no-requeue?): submit it again by hand"
    if [ -n "$1" ]; then
        [ "$out" = "(null)" ] || [ -z "$out" ] || set -- "$out,$1"
        # This is possible only while the job waits in the queue, which it does from now on.
        # The SIGTERM, which is sent once, may also end the first scontrol here.
        if exclude "$1" || exclude "$1"; then
            say "left out from now on: $1. If too few are left it waits with Reason=BadConstraints: delete lines of $RUN_DIR/bad_nodes, then scontrol update JobId=$JOB ExcNodeList=NODES"
        else
            say "could not exclude $1"
        fi
    fi
    while [ -z "$ended" ]; do sleep 1; done
    exit "$FAILED"
}

exclude() { scontrol update JobId="$JOB" ExcNodeList="$1"; } # NODES

leave_to_slurm() { # ends this script when Slurm is ending the job: a cancelled one must not come back
    local start limit
    # After scancel and at the end of the time the state is COMPLETING, but a preempted job still runs in its grace time.
    case $(job_field JobState) in
    CANCELLED* | PENDING | REQUEUE*) ;;
    COMPLETING)
        start=$(date -d "$(job_field StartTime)" +%s 2>/dev/null) limit=$(in_seconds "$(job_field TimeLimit)")
        [ $(($(date +%s) - ${start:-0})) -lt "$limit" ] || return 0
        ;;
    *) return 0 ;;
    esac
    say "cancelled, or put back into the queue by Slurm itself"
    exit "$FAILED"
}
