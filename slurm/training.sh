# One training under Slurm: started, stopped in time, put back into the queue. Sourced by pretrain.sh and finetune.sh.
# shellcheck shell=bash

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
    enter_environment
    read_run "${ARGUMENTS[@]}"
    case $? in
    0)
        [ ! -e "$RUN_DIR/DONE" ] || die "$DO_NOT_RESTART" "$RUN_DIR is finished (it has a DONE file); give the run another name"
        [ ! -s "$RUN_DIR/bad_nodes" ] || SBATCH_EXTRA=(--exclude="$(bad_nodes)" "${SBATCH_EXTRA[@]}")
        ;;
    75) ;; # only the job's container has a Python
    *) exit "$DO_NOT_RESTART" ;;
    esac
    submit training "$@"
}

train() { # the job itself; ARGUMENTS are those of pargo_ds.train
    trap 'ask_to_stop' "$SITE_SIGNAL" TERM
    ASKED='' USER_STOP='' RUN_DIR='' PID=''
    enter_environment
    if ! read_run "${ARGUMENTS[@]}"; then exit "$DO_NOT_RESTART"; fi
    [ ! -e "$RUN_DIR/DONE" ] || { say "$RUN_DIR is finished" && exit 0; }
    mkdir -p "$RUN_DIR" || exit "$FAILED"
    describe_job
    look_at_stop_file
    count_restarts
    choose_nodes
    launch
    after_training
}

# The file STOP is how a request reaches the ranks: they look for it after each step and agree. Signals would not do:
# those to srun or torchrun end it before the ranks have saved, and a site's cgroups then kill the ranks.

ask_to_stop() {
    [ -n "$ASKED" ] || say "asked to stop: the running step will be finished and saved"
    ASKED=yes
    write_stop_file
}

write_stop_file() {
    [ -n "$RUN_DIR" ] && [ -n "$PID" ] || return 0
    # A file that is there is the user's: then the run shall not go on.
    if [ -e "$RUN_DIR/STOP" ]; then
        ours || USER_STOP=yes
    else
        echo "slurm job $SLURM_JOB_ID" >"$RUN_DIR/STOP"
    fi
}

ours() { grep -qs '^slurm job' "$RUN_DIR/STOP"; }

look_at_stop_file() { # one that our trap left behind would stop this start; a user's counts while the job waited
    [ -e "$RUN_DIR/STOP" ] || return 0
    if ! ours && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
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
    echo "$STEP_AT_START $RESTARTS" >"$RUN_DIR/restarts" ||
        die "$FAILED" "$RUN_DIR cannot be written: make it writable or make room, then submit again"
    [ "$RESTARTS" -le "$SITE_MAX_RESTARTS" ] || give_up
}

give_up() {
    say "$SITE_MAX_RESTARTS restarts in a row brought no checkpoint after step $STEP_AT_START: no further one. See $RUN_DIR/failure.txt and the logs; submit again to try again"
    exit "$FAILED"
}

# Nodes

bad_nodes() { cut -d ' ' -f 1 "$RUN_DIR/bad_nodes" 2>/dev/null | sort -u | paste -sd ,; }

choose_nodes() { # -> HOSTS: good ones, as many as divide the batch
    local ranks
    mapfile -t HOSTS < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [ "$SITE_PREFLIGHT" != yes ] || check_nodes
    while [ "${#HOSTS[@]}" -gt 0 ]; do
        ranks=$((${#HOSTS[@]} * SITE_RANKS_PER_NODE))
        [ $((PACKS % ranks)) -ne 0 ] || break
        say "batch.packs_per_step=$PACKS does not divide over $ranks ranks: ${HOSTS[-1]} stays idle"
        unset 'HOSTS[-1]'
    done
    [ "${#HOSTS[@]}" -gt 0 ] || die "$DO_NOT_RESTART" "batch.packs_per_step=$PACKS divides over no number of nodes with $SITE_RANKS_PER_NODE ranks each"
}

check_nodes() { # each node says what is wrong with it, or that all is well; one that says nothing is bad
    local host verdict good=() report=$RUN_DIR/preflight
    srun --nodes="${#HOSTS[@]}" --ntasks="${#HOSTS[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 --time=5 \
        "${STEP[@]}" timeout 240 "$SITE_PYTHON" tools/check_node.py --gpus "$SITE_GPUS_PER_NODE" --scratch "$SITE_SCRATCH" \
        --free-gb "${SITE_PREFLIGHT_FREE_GB:-0}" >"$report" 2>"$report.errors"
    if [ "${#HOSTS[@]}" -gt 1 ] && ! grep -q '^node ' "$report"; then
        cat "$report.errors"
        die "$FAILED" "no node gave an answer to tools/check_node.py: rather site.env's environment than all nodes"
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

# The run

launch() { # one task for each rank, so that no launcher stands between a rank and its exit status
    local late
    local -a command=("$SITE_PYTHON" -m pargo_ds.train "${ARGUMENTS[@]}" --set "survival.stop_signal=$SITE_SIGNAL")
    [ -z "$SITE_WANDB" ] || command+=(--set "reporting.wandb=$SITE_WANDB")
    [ -z "$SITE_CACHE" ] || command+=(--set "data.cache=$SITE_CACHE")
    export MASTER_ADDR=${HOSTS[0]}
    export LOCAL_WORLD_SIZE=$SITE_RANKS_PER_NODE
    # Below the ephemeral ports, and another one for each job: nodes may be shared.
    export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # A rank that waits in vain for another one ends with an error, and with the last calls of each rank beside its log.
    export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}" TORCH_NCCL_DUMP_ON_TIMEOUT=1
    export TORCH_FR_BUFFER_SIZE="${TORCH_FR_BUFFER_SIZE:-2000}" TORCH_FR_DUMP_TEMP_FILE="$RUN_DIR/logs/nccl_rank_"
    [ "$SITE_GPUS_PER_NODE" != 0 ] || export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=''
    rm -f "$RUN_DIR/state.json" # what stands there afterwards is of this start
    say "starting ${#HOSTS[@]} x $SITE_RANKS_PER_NODE ranks on ${HOSTS[*]} after step $STEP_AT_START; ranks log into $RUN_DIR/logs"
    # Not inherited from sbatch since Slurm 22.05: --cpus-per-task. A rank's number must be taken inside of srun.
    # In the background: bash would run no trap while a program in the foreground lives.
    # shellcheck disable=SC2016
    srun --nodes="${#HOSTS[@]}" --nodelist="$(IFS=, && echo "${HOSTS[*]}")" --ntasks="$((${#HOSTS[@]} * SITE_RANKS_PER_NODE))" \
        --ntasks-per-node="$SITE_RANKS_PER_NODE" --cpus-per-task="$SITE_CPUS_PER_TASK" --kill-on-bad-exit=1 --wait=300 --label \
        "${STEP[@]}" bash -c \
        'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS && exec "$@"' rank "${command[@]}" &
    PID=$!
    STATUS=0
    # A signal interrupts `wait`, which then returns no status of srun: only a process that is gone ends the loop.
    while kill -0 "$PID" 2>/dev/null; do
        if [ -z "$ASKED" ]; then
            wait "$PID"
            STATUS=$?
        else
            write_stop_file # again and again: a start that is still under way removes it
            sleep 1
        fi
    done
    wait "$PID" 2>/dev/null
    late=$?
    [ "$late" -eq 127 ] || STATUS=$late # 127: the first wait had it
    PID=''
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
    if [ "$restart" = false ] || { [ -z "$state" ] && [ "$STATUS" -eq "$DO_NOT_RESTART" ]; }; then
        say "starting again would not help: $reason"
        exit "$DO_NOT_RESTART"
    fi
    # A request that is not from here, and not Slurm's SIGTERM to the ranks, is a person's.
    if [ "$state" = interrupted ] && [[ $reason != SIG* ]] && { [ -z "$ASKED" ] || [ -n "$USER_STOP" ]; }; then
        say "stopped by $reason: it stays so until somebody submits it again"
        exit "$STOPPED"
    fi
    if given_up; then say "cancelled" && exit "$FAILED"; fi
    if [ "$(newest_step)" -le "$STEP_AT_START" ] && [ "$RESTARTS" -ge "$SITE_MAX_RESTARTS" ]; then give_up; fi
    say "back into the queue"
    rm -f "$RUN_DIR/STOP"
    requeue "$(bad_nodes)"
}

wandb_hint() {
    compgen -G "$RUN_DIR/wandb/offline-run-*" >/dev/null || return 0
    say "wandb was offline; where there is a network: wandb sync $RUN_DIR/wandb/offline-run-*"
}
