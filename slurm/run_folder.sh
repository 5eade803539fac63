# What this job does in the run's folder: it records which job has the run, requests stops, counts restarts without progress,
# and records bad nodes. training.sh sources this file; it is never run.
# shellcheck shell=bash

LOCK_WAIT_S=60 # processes of a killed run hold its lock a little longer than the run itself

cannot_write() { die "$FAILED" "$RUN_DIR cannot be written: make it writable or make room, then submit again"; }

# RUN/slurm_job names the job that has the run, from its first start through all requeues. Another job changes nothing while
# Slurm still knows that job. A file lock is not enough, because it is free while the job waits in the queue.

hold_run() {
    local other='' lock
    mkdir -p "$RUN_DIR" && exec {lock}>>"$RUN_DIR/slurm_job" || cannot_write
    flock -w "$LOCK_WAIT_S" "$lock" # two that start at once look one after the other; where files have no locks, at the same time
    read -r other <"$RUN_DIR/slurm_job"
    if [ "$other" != "$SLURM_JOB_ID" ]; then
        [ -z "$other" ] || refuse_another_job "$other"
        refuse_another_process
        echo "$SLURM_JOB_ID" >"$RUN_DIR/slurm_job" || cannot_write
    fi
    exec {lock}>&-
}

refuse_another_job() { # JOB; one that is ending may still write, and is waited for
    local tries found=0
    for ((tries = 0; tries < 60; tries++)); do
        job_lives "$1"
        found=$?
        [ "$found" -eq 2 ] || break
        [ "$tries" -gt 0 ] || say "waiting for job $1, which holds $RUN_DIR, to end"
        sleep 5
        end_if_asked
    done
    [ "$found" -ne 1 ] || return 0
    die "$DO_NOT_RESTART" "$RUN_DIR is held by job $1 ($(job_field JobState "$1"), $(job_field Reason "$1")): scancel $1 first, or give this run another name (RUN/slurm_job says who holds it)"
}

job_lives() { # JOB: 0 it runs or waits, 1 it has ended, 2 it is ending, or Slurm gives no answer
    local said
    said=$(scontrol show job -o "$1" 2>&1)
    case $said in
    *"Invalid job id"*) return 1 ;;
    *JobState=*) said=${said#*JobState=} ;;
    *) return 2 ;;
    esac
    case ${said%% *} in
    COMPLETING) return 2 ;;
    COMPLETED | CANCELLED* | FAILED | *_FAIL | TIMEOUT | PREEMPTED | DEADLINE | OUT_OF_MEMORY | REVOKED) return 1 ;;
    esac
}

refuse_another_process() { # one outside of Slurm, or of another cluster
    [ -e "$RUN_DIR/.lock" ] || return 0
    flock -w "$LOCK_WAIT_S" "$RUN_DIR/.lock" true
    [ $? -ne 1 ] || die "$DO_NOT_RESTART" \
        "$RUN_DIR is being trained by another process ($(cat "$RUN_DIR/.lock")): end that one first ($(printf 'touch %q' "$RUN_DIR/STOP")), or give this run another name"
}

# A stop is requested by the file STOP: the ranks look for it after each step and agree. Signals are not used, because a
# signal to srun or torchrun ends it before the ranks have saved, and then the site's cgroups kill the ranks.

write_stop_file() {
    # If the file exists already, the user has made it, and the run must not continue.
    if [ -e "$RUN_DIR/STOP" ]; then
        ours || USER_STOP=yes
    else
        echo "slurm job $SLURM_JOB_ID" >"$RUN_DIR/STOP"
    fi
}

ours() { grep -qs '^slurm job' "$RUN_DIR/STOP"; }

look_at_stop_file() { # one that a trap or an earlier run left behind would stop this start; a user's counts while the job waited
    [ -e "$RUN_DIR/STOP" ] || return 0
    # The file must be younger than the submission; after a requeue there is no older file.
    if ! ours && { [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || [ "$(stat -c %Y "$RUN_DIR/STOP")" -ge "$PARGO_SUBMITTED" ]; }; then
        rm -f "$RUN_DIR/STOP"
        say "the file STOP was put into $RUN_DIR while the job waited: it ends here"
        exit "$STOPPED"
    fi
    rm -f "$RUN_DIR/STOP"
    say "removed a file STOP that was left over"
}

# Restarts without progress: $RUN_DIR/restarts holds the step of the newest checkpoint at the last start, and the number of
# consecutive starts without a newer one. They are counted at the start, so that restarts after a lost node count, too.

newest_step() {
    local folder
    folder=$(cat "$RUN_DIR/checkpoints/latest" 2>/dev/null)
    echo $((10#0${folder##*_}))
}

count_restarts() {
    local before=-1 count=0
    STEP_AT_START=$(newest_step) RESTARTS=0
    # When a person submits a job, the count begins at zero.
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -s "$RUN_DIR/restarts" ]; then
        read -r before count <"$RUN_DIR/restarts"
        [ "$STEP_AT_START" -gt "$before" ] || RESTARTS=$((count + 1))
    fi
    # If restarts could not be counted, they would never end.
    echo "$STEP_AT_START $RESTARTS" >"$RUN_DIR/restarts" || cannot_write
    [ "$RESTARTS" -le "$SITE_MAX_RESTARTS" ] || give_up
}

give_up() {
    say "$SITE_MAX_RESTARTS restarts in a row brought no checkpoint after step $STEP_AT_START: no further one. See $RUN_DIR/failure.txt and the logs; submit again to try again"
    exit "$FAILED"
}

bad_nodes() { cut -d ' ' -f 1 "$RUN_DIR/bad_nodes" 2>/dev/null | sort -u | paste -sd ,; }
