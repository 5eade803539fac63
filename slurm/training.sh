# Runs one training under Slurm: it starts the training, stops it in time, and requeues the job. pretrain.sh and finetune.sh
# source this file.
# shellcheck shell=bash

# shellcheck source=slurm/run_folder.sh
source "${BASH_SOURCE[0]%/*}/run_folder.sh"
# The status 2 of a rank (do not start again) becomes this status. srun ends the other ranks with a signal and returns the
# highest status of all ranks, so this one must be higher than the status of any signal.
FINAL=222

training() { # TEMPLATE DEFAULT_RUN.yaml [RUN.yaml] [--set a.b=c ...] [-- SBATCH OPTIONS]
    local template=$1 run_file=$2
    shift 2
    split_arguments "$@"
    set -- "${ARGUMENTS[@]}"
    case ${1:-} in
    '' | -*) ;;
    *)
        run_file=$1
        shift
        ;;
    esac
    [ -f "$run_file" ] || die "$DO_NOT_RESTART" "run file $run_file does not exist (relative paths begin at $PROJECT)"
    ARGUMENTS=("$run_file" "$@")
    [ -z "$SITE_RUNS" ] || ARGUMENTS+=(--set "output=$SITE_RUNS")
    if in_job; then
        take_over training "$template" "$run_file" "$@"
        train
    else
        submit_training "$template" "$run_file" "$@"
    fi
}

submit_training() { # TEMPLATE [ARGUMENTS...]; a run file that cannot be used, or a run that is done, queues nothing
    local other=''
    enter_environment
    read_run "${ARGUMENTS[@]}"
    case $? in
    0)
        [ ! -e "$RUN_DIR/DONE" ] || die "$DO_NOT_RESTART" "$RUN_DIR is finished (it has a DONE file); give the run another name"
        check_division "${ARGUMENTS[0]}"
        [ ! -s "$RUN_DIR/slurm_job" ] || read -r other <"$RUN_DIR/slurm_job"
        [ -z "$other" ] || ! job_lives "$other" ||
            echo "note: job $other holds $RUN_DIR; the new one ends with status $DO_NOT_RESTART if it starts before the end of that one" >&2
        ;;
    75) ;; # only the job's container has a Python
    *) exit "$DO_NOT_RESTART" ;;
    esac
    submit_run "$@"
}

submit_run() { # TEMPLATE [ARGUMENTS...]; the run is the one of RUN_DIR, if that could be read; prints the job's id
    local bad=''
    [ -z "${RUN_DIR:-}" ] || bad=$(bad_nodes)
    # sbatch uses only its last --exclude.
    [ -z "$bad" ] || SBATCH_EXTRA+=(--exclude="$(left_out "${SITE_SBATCH_OPTIONS[@]}" "${SBATCH_EXTRA[@]}")$bad")
    submit training "$@" && return
    [ -z "$bad" ] || die "$FAILED" "sbatch was to leave out $bad, as $RUN_DIR/bad_nodes says: delete the lines of nodes that are well again"
    exit "$FAILED"
}

left_out() { # OPTIONS of sbatch; the nodes that they leave out, with a comma behind each
    local word before=''
    for word in "$@"; do
        case $word in
        --exclude=*) printf '%s,' "${word#*=}" ;;
        -x?*) printf '%s,' "${word#-x}" ;;
        *) case $before in --exclude | -x) printf '%s,' "$word" ;; esac ;;
        esac
        before=$word
    done
}

train() { # the job itself; ARGUMENTS are those of pargo_ds.train
    heed_signals
    USER_STOP='' RUN_DIR=''
    enter_environment
    read_run "${ARGUMENTS[@]}" || {
        end_if_asked $?
        exit "$DO_NOT_RESTART"
    }
    [ ! -e "$RUN_DIR/DONE" ] || { say "$RUN_DIR is finished" && exit 0; }
    export PARGO_SUBMITTED="${PARGO_SUBMITTED:-$(submission_time)}"
    hold_run
    look_at_stop_file
    count_restarts
    end_if_asked
    describe_job
    choose_nodes
    end_if_asked
    launch
    after_training
}

end_if_asked() { # [STATUS of srun]; before there are ranks to ask: nothing is started, nothing judged
    # At a preemption Slurm may signal only the step, or this script a moment later.
    case ${1:-0} in 143 | "$((128 + $(kill -l "$SITE_SIGNAL")))") ASKED=yes ;; esac
    [ -n "$ASKED" ] || return 0
    say "asked to stop before the ranks were started"
    requeue ""
}

# Nodes

choose_nodes() { # -> HOSTS: good ones, as many as divide the batch
    local ranks
    check_division "${ARGUMENTS[0]}"
    mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [ "$SITE_PREFLIGHT" != yes ] || check_nodes
    while ranks=$((${#HOSTS[@]} * SITE_RANKS_PER_NODE)) && [ $((PACKS % ranks)) -ne 0 ]; do
        say "batch.packs_per_step=$PACKS does not divide over $ranks ranks: ${HOSTS[-1]} stays idle"
        unset 'HOSTS[-1]'
    done
}

check_nodes() { # each node says what is wrong with it, or that all is well; one that says nothing is bad
    local host verdict good=() report=$RUN_DIR/preflight
    attended end_check start_check
    # If a node hangs, the step ends in a signal, too.
    ! grep -q 'STEP .* DUE TO TIME LIMIT' "$report.errors" || STATUS=124
    end_if_asked "$STATUS"
    if [ "${#HOSTS[@]}" -gt 1 ] && ! grep -q '^node ' "$report"; then
        cat "$report.errors"
        die "$FAILED" "no node gave an answer to tools/check_node.py: rather site.env (SITE_PYTHON, site_environment) than all nodes"
    fi
    for host in "${HOSTS[@]}"; do
        verdict=$(sed -n "s/^node ${host}: //p" "$report" | tail -n 1)
        if [ "$verdict" = good ]; then
            good+=("$host")
        else
            say "node $host is bad: ${verdict:-it gave no answer}"
            echo "$host $(date '+%F %T') ${verdict:-it gave no answer}" >>"$RUN_DIR/bad_nodes"
        fi
    done
    [ "${#good[@]}" -ne "${#HOSTS[@]}" ] || return 0
    cat "$report.errors"
    if [ "${#good[@]}" -lt "${SITE_NODES%-*}" ]; then
        say "${#good[@]} good nodes, slurm/site.env asks for $SITE_NODES: back into the queue without the bad ones"
        requeue "$(bad_nodes)"
    fi
    HOSTS=("${good[@]}")
}

start_check() { # the same process as this: it gets the signals
    exec srun --nodes="${#HOSTS[@]}" --ntasks="${#HOSTS[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 --time=5 \
        "${STEP[@]}" timeout 240 "$SITE_PYTHON" tools/check_node.py --gpus "$SITE_GPUS_PER_NODE" --scratch "$SITE_SCRATCH" \
        --free-gb "${SITE_PREFLIGHT_FREE_GB:-0}" >"$report" 2>"$report.errors"
}

end_check() { kill "$PID"; }

# The run

launch() { # one task for each rank, so that no launcher stands between a rank and its exit status
    local -a command=("$SITE_PYTHON" -m pargo_ds.train "${ARGUMENTS[@]}" --set "survival.stop_signal=$SITE_SIGNAL")
    [ -z "$SITE_WANDB" ] || command+=(--set "reporting.wandb=$SITE_WANDB")
    [ -z "$SITE_CACHE" ] || command+=(--set "data.cache=$SITE_CACHE")
    export MASTER_ADDR=${HOSTS[0]}
    export LOCAL_WORLD_SIZE=$SITE_RANKS_PER_NODE
    # A port below the ephemeral ones; each job has another one, because jobs may share nodes.
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # A rank that waits in vain for another one ends with an error, and writes its last collective calls beside its log.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}" TORCH_NCCL_DUMP_ON_TIMEOUT=1
    export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}" TORCH_FR_DUMP_TEMP_FILE="$RUN_DIR/logs/nccl_rank_"
    [ "$SITE_GPUS_PER_NODE" != 0 ] || export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=''
    rm -f "$RUN_DIR/state.json" # what stands there afterwards is of this start
    say "starting ${#HOSTS[@]} x $SITE_RANKS_PER_NODE ranks on ${HOSTS[*]} after step $STEP_AT_START; ranks log into $RUN_DIR/logs"
    # Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch. The number of a rank is known only within srun.
    # The shell around each rank survives signals (`trap :`), so that it can return the status of the rank.
    # shellcheck disable=SC2016
    attended write_stop_file \
        srun --nodes="${#HOSTS[@]}" --nodelist="$(IFS=, && echo "${HOSTS[*]}")" --ntasks="$((${#HOSTS[@]} * SITE_RANKS_PER_NODE))" \
        --ntasks-per-node="$SITE_RANKS_PER_NODE" --cpus-per-task="$SITE_CPUS_PER_TASK" --kill-on-bad-exit=1 --wait=300 --label \
        "${STEP[@]}" bash -c \
        'trap : TERM USR1 USR2; export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
        final=$1; shift; "$@"; status=$?; [ "$status" -ne 2 ] || status=$final; exit "$status"' rank "$FINAL" "${command[@]}"
    [ "$STATUS" -ne "$FINAL" ] || STATUS=$DO_NOT_RESTART
}

state() { # KEY of state.json, one line that the project itself writes
    sed -nE "s/.*\"$1\": \"?(([^\"\\\\]|\\\\.)*)\"?, \".*/\\1/p" "$RUN_DIR/state.json" 2>/dev/null
}

after_training() { # done, stopped for good, hopeless, or once more; launchers lose exit statuses, so state.json counts
    local state restart reason
    state=$(state state) restart=$(state restart) reason=$(state reason)
    say "ranks ended with status $STATUS; state.json: ${state:-nothing new} after step $(newest_step)${reason:+ ($reason)}"
    wandb_hint
    [ ! -e "$RUN_DIR/DONE" ] || { say "$RUN_DIR is finished" && exit 0; }
    # The first error is in state.json, unless the file could not be written.
    [ "$state" = failed ] || [ "$STATUS" -ne "$DO_NOT_RESTART" ] || restart=false reason='a rank ended with status 2, its words stand above'
    if [ "$restart" = false ]; then
        say "starting again would not help: $reason"
        exit "$DO_NOT_RESTART"
    fi
    # A request that comes neither from this script nor from Slurm's SIGTERM to the ranks was made by a person.
    if [ "$state" = interrupted ] && [[ $reason != SIG* ]] && { [ -z "$ASKED" ] || [ -n "$USER_STOP" ]; }; then
        say "stopped by $reason: it stays so until somebody submits it again"
        exit "$STOPPED"
    fi
    leave_to_slurm
    if [ "$(newest_step)" -le "$STEP_AT_START" ] && [ "$RESTARTS" -ge "$SITE_MAX_RESTARTS" ]; then give_up; fi
    say "back into the queue"
    ! ours || rm -f "$RUN_DIR/STOP" # a person's that came too late for this start is meant for the next one
    requeue "$(bad_nodes)"
}

wandb_hint() {
    compgen -G "$RUN_DIR/wandb/offline-run-*" >/dev/null || return 0
    say "wandb was offline; where there is a network: wandb sync $(printf %q "$RUN_DIR")/wandb/offline-run-*"
}
