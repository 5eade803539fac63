#!/usr/bin/env bash
# Look over slurm/site.env and the scripts before anything is queued: slurm/check.sh [RUN.yaml ...]
# `sbatch --test-only` for each script, then what that does not see. Run files: default those of pre-training and
# fine-tuning. Status 0: nothing found; 1: something that would fail later; 2: no site.env.

set -uo pipefail
here=$(dirname "$0")
[ -f "$here/core.sh" ] || { echo "error: call slurm/check.sh without sbatch" >&2 && exit 2; }
# shellcheck source=slurm/core.sh
source "$here/core.sh"
explain_if_asked "$@"
open_project "$here"
FAULTS=0

good() { printf 'ok     %s\n' "$*"; }
note() { printf 'note   %s\n' "$*"; }
fault() {
    printf 'FAULT  %s\n' "$*"
    FAULTS=$((FAULTS + 1))
}

check_names() { # names in site.env that nothing reads, values that were left as in the example
    local name known=" ${NEEDED[*]} ${OPTIONAL[*]} ${ARRAYS[*]} " before=$FAULTS
    # shellcheck disable=SC2013 # names have no blanks
    for name in $(grep -oE '^ *(export +)?SITE_[A-Za-z0-9_]*' slurm/site.env | grep -oE 'SITE_.*' | sort -u); do
        [[ $known == *" $name "* ]] || fault "site.env: $name is not known; see slurm/site.env.example"
    done
    for name in SITE_PARTITION SITE_SMALL_PARTITION; do
        [ "${!name}" != PARTITION ] || fault "site.env: $name is still the example's word; sinfo lists the partitions"
    done
    [ "$FAULTS" -ne "$before" ] || good "site.env: all names are known, the needed ones have values"
}

check_values() { # values that do not go together
    local name before=$FAULTS
    for name in SITE_GPUS_PER_NODE SITE_RANKS_PER_NODE SITE_CPUS_PER_TASK SITE_SIGNAL_LEAD SITE_MAX_RESTARTS SITE_SMALL_CPUS; do
        [[ ${!name} =~ ^[0-9]+$ ]] || fault "site.env: $name=${!name} is no number"
    done
    [[ $SITE_NODES =~ ^[1-9][0-9]*(-[1-9][0-9]*)?$ ]] || fault "site.env: SITE_NODES=$SITE_NODES; expected a number, or two as in 1-2"
    [[ $SITE_SIGNAL =~ ^USR[12]$ ]] || fault "site.env: SITE_SIGNAL=$SITE_SIGNAL; expected USR1 or USR2"
    if [ "$SITE_GPUS_PER_NODE" != 0 ] && [ "$SITE_GPUS_PER_NODE" != "$SITE_RANKS_PER_NODE" ]; then
        fault "site.env: SITE_RANKS_PER_NODE=$SITE_RANKS_PER_NODE, but each rank takes one of SITE_GPUS_PER_NODE=$SITE_GPUS_PER_NODE"
    fi
    [ $((2 * SITE_SIGNAL_LEAD)) -lt "$(in_seconds "$SITE_TIME")" ] ||
        fault "site.env: the signal comes SITE_SIGNAL_LEAD=$SITE_SIGNAL_LEAD s before the end of SITE_TIME=$SITE_TIME: no time to train"
    [ "$SITE_SIGNAL_LEAD" -lt "$(in_seconds "$SITE_SMALL_TIME")" ] ||
        fault "site.env: the signal comes SITE_SIGNAL_LEAD=$SITE_SIGNAL_LEAD s before the end of SITE_SMALL_TIME=$SITE_SMALL_TIME: no time for shards"
    [ "$SITE_SIGNAL_LEAD" -ge 120 ] || note "SITE_SIGNAL_LEAD=$SITE_SIGNAL_LEAD s is short for a step and a checkpoint of a large model"
    [ "$FAULTS" -ne "$before" ] || good "site.env: the values go together"
}

check_log_folder() { # sbatch takes a folder that is not there; the job then ends at once and leaves no log
    if [ -d "$SITE_LOGS" ] && [ -w "$SITE_LOGS" ]; then
        good "log folder $SITE_LOGS"
    elif mkdir -p "$SITE_LOGS" 2>/dev/null; then
        good "log folder $SITE_LOGS (made now)"
    else
        fault "log folder SITE_LOGS=$SITE_LOGS cannot be written"
    fi
}

check_directives() { # sbatch passes over #SBATCH lines after the first command, and says nothing
    local script late
    for script in slurm/*.sh; do
        late=$(awk '/^#SBATCH/ && begun { print FNR } !/^[[:space:]]*(#|$)/ { begun = 1 }' "$script" | paste -sd ,)
        [ -z "$late" ] || fault "$script: #SBATCH after the first command is not read: line $late"
    done
    good "#SBATCH lines stand before the first command"
}

check_time() { # TIME PARTITION: sbatch queues a job that asks for more than the partition gives; it waits for ever
    local most
    [ -n "$2" ] || return 0
    most=$(scontrol show partition -o "$2" 2>/dev/null | tr ' ' '\n' | sed -n 's/^MaxTime=//p')
    [ -n "$most" ] || return 0 # test-only names a partition that is not there
    if [ "$(in_seconds "$1")" -gt "$(in_seconds "$most")" ]; then
        fault "time $1 is more than partition $2 gives ($most)"
    else
        good "time $1 fits partition $2 ($most)"
    fi
}

check_accounting() {
    if scontrol show config 2>/dev/null | grep -q '^AccountingStorageType *= *accounting_storage/slurmdbd'; then
        note "SITE_ACCOUNT='$SITE_ACCOUNT', SITE_QOS='$SITE_QOS': sbatch itself checks them below, where the site enforces them"
    else
        note "SITE_ACCOUNT='$SITE_ACCOUNT', SITE_QOS='$SITE_QOS' cannot be checked: this Slurm has no accounting"
    fi
}

test_only() { # KIND SCRIPT [OPTIONS]
    local kind=$1 script=$2 said
    shift 2
    site_options "$kind"
    if said=$(sbatch --test-only --output="$SITE_LOGS/%x-%j.out" "${OPTIONS[@]}" "$@" "slurm/$script" 2>&1); then
        good "$script: ${said#sbatch: }"
    else
        fault "$script: $said"
    fi
}

check_plan() { # RUN.yaml NODES: whether the run fits into the memory of the site's GPUs, and what it would take
    local file=$1 ranks=$(($2 * SITE_RANKS_PER_NODE)) said
    [ "$SITE_GPUS_PER_NODE" != 0 ] || return 0 # on CPUs there is nothing to plan
    if [ -z "$SITE_GPU" ]; then
        note "$file was not planned: site.env does not set SITE_GPU"
    elif said=$(DS_ACCELERATOR=cpu python_here tools/plan_run.py "$file" --gpus "$ranks" --gpu "$SITE_GPU" \
        --gpus-per-node "$SITE_RANKS_PER_NODE" --network "${SITE_NETWORK:-400g}" 2>&1); then
        good "$file: plan for $ranks x $SITE_GPU: $(sed -n 's/^in short: //p' <<<"$said")"
    else
        fault "$file: $(tail -n 1 <<<"$said")"
    fi
}

check_run() { # RUN.yaml: the settings, on each number of nodes that a job may get
    local file=$1 nodes said tried most=${SITE_NODES#*-} fits=0 planned=0
    [ "$most" -le $((${SITE_NODES%-*} + 7)) ] || most=$((${SITE_NODES%-*} + 7))
    for ((nodes = ${SITE_NODES%-*}; nodes <= most; nodes++)); do
        if said=$(DS_ACCELERATOR=cpu python_here -m pargo_ds.train "$file" --dry-run --ranks "$((nodes * SITE_RANKS_PER_NODE))" 2>&1); then
            good "$file on $nodes x $SITE_RANKS_PER_NODE ranks"
            fits=1
            # more ranks need less memory: the fewest nodes decide
            [ "$planned" -eq 1 ] || check_plan "$file" "$nodes"
            planned=1
            tried=$(grep '^export .*tried' <<<"$said")
        elif [ "$?" -eq 75 ]; then
            note "$file was not checked: the site's Python runs in a pyxis container, which only a job has"
            return
        elif [[ $said == *"does not divide over"* ]]; then
            note "$file on $nodes x $SITE_RANKS_PER_NODE ranks: $(tail -n 1 <<<"$said"); a node would stay idle"
        else
            fault "$file: $(tail -n 5 <<<"$said") (SITE_PYTHON=$SITE_PYTHON)"
            return
        fi
    done
    [ -z "${tried:-}" ] || note "$file: $tried"
    [ "$fits" -eq 1 ] || fault "$file: no number of nodes in SITE_NODES=$SITE_NODES divides its batch.packs_per_step"
}

check_names
check_values
check_log_folder
check_directives
check_time "$SITE_TIME" "$SITE_PARTITION"
check_time "$SITE_SMALL_TIME" "$SITE_SMALL_PARTITION"
check_accounting
test_only training pretrain.sh
test_only training finetune.sh
test_only small convert.sh
test_only small shards.sh --array=0-3
test_only evaluation evaluate.sh
test_only small caption.sh --array=0-3
test_only training study.sh --array=0-3
enter_environment
[ $# -gt 0 ] || set -- ds_configs/pretrain.yaml ds_configs/finetune.yaml
for file in "$@"; do check_run "$file"; done
echo
[ "$FAULTS" -eq 0 ] || { echo "$FAULTS faults"; exit "$FAILED"; }
echo "nothing found that would fail"
