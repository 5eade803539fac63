# What this job may do to the run's folder: who holds the run, requests to stop it, restarts that bring nothing, bad nodes.
# Sourced by training.sh, never run.
# shellcheck shell=bash

LOCK_WAIT_S=60 # processes of a killed run hold its lock a little longer than the run itself

cannot_write() { die "$FAILED" "$RUN_DIR cannot be written: make it writable or make room, then submit again"; }

# RUN/slurm_job names the job whose run this is, from its first start through all its requeues. Another job that finds one
# there which Slurm still knows touches nothing. A file lock would not do: it is free while its holder waits in the queue.

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

# The file STOP is how a request reaches the ranks: they look for it after each step and agree. Signals would not do:
# those to srun or torchrun end it before the ranks have saved, and a site's cgroups then kill the ranks.

write_stop_file() {
    # A file that is there is the user's: then the run shall not go on.
    if [ -e "$RUN_DIR/STOP" ]; then
        ours || USER_STOP=yes
    else
        echo "slurm job $SLURM_JOB_ID" >"$RUN_DIR/STOP"
    fi
}

ours() { grep -qs '^slurm job' "$RUN_DIR/STOP"; }

look_at_stop_file() { # one that a trap or an earlier run left behind would stop this start; a user's counts while the job waited
    [ -e "$RUN_DIR/STOP" ] || return 0
    # Younger than the submission; after a requeue there is none of before.
    if ! ours && { [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || [ "$(stat -c %Y "$RUN_DIR/STOP")" -ge "$PARGO_SUBMITTED" ]; }; then
        rm -f "$RUN_DIR/STOP"
        say "the file STOP was put into $RUN_DIR while the job waited: it ends here"
        exit "$STOPPED"
    fi
    rm -f "$RUN_DIR/STOP"
    say "removed a file STOP that was left over"
}

# Restarts without progress: $RUN_DIR/restarts holds the newest checkpoint's step at the last start, and how many starts
# in a row found no newer one. Counted at the start, so that those after a lost node count too.

newest_step() {
    local folder
    folder=$(cat "$RUN_DIR/checkpoints/latest" 2>/dev/null)
    echo $((10#0${folder##*_}))
}

count_restarts() {
    local before=-1 count=0
    STEP_AT_START=$(newest_step) RESTARTS=0
    # A job that a person submits begins to count anew.
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -s "$RUN_DIR/restarts" ]; then
        read -r before count <"$RUN_DIR/restarts"
        [ "$STEP_AT_START" -gt "$before" ] || RESTARTS=$((count + 1))
    fi
    # Uncounted restarts would never come to an end.
    echo "$STEP_AT_START $RESTARTS" >"$RUN_DIR/restarts" || cannot_write
    [ "$RESTARTS" -le "$SITE_MAX_RESTARTS" ] || give_up
}

give_up() {
    say "$SITE_MAX_RESTARTS restarts in a row brought no checkpoint after step $STEP_AT_START: no further one. See $RUN_DIR/failure.txt and the logs; submit again to try again"
    exit "$FAILED"
}

bad_nodes() { cut -d ' ' -f 1 "$RUN_DIR/bad_nodes" 2>/dev/null | sort -u | paste -sd ,; }
