#!/usr/bin/env bash
# What every SLURM job of this toolkit runs; the job scripts end in it.
#   run.sh STAGE [key=value ...]   the job, on its first node; STAGE is record, prepare, finetune or evaluate. Typed inside an
#                                  allocation (salloc, srun --pty, Jupyter) it runs on those nodes and requeues nothing
#   run.sh site PROBE ...          the same for python -m finetune.slurm.site
#   run.sh node|rank ...           its own further calls: once for every node, once for every process
# It runs as a copy of the checkout's code in the run folder, so that editing the checkout changes no job.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
container=() options=() # put before python; of srun
[ -z "${GROOT_CONTAINER:-}" ] || mapfile -t container <<< "$GROOT_CONTAINER"
[ -z "${GROOT_SRUN:-}" ] || mapfile -t options <<< "$GROOT_SRUN"
signals=(USR1 TERM)
# A job's script and what it turns into are one process, which no step started.
interactive=
if [ "${SLURM_TASK_PID:-}" != $$ ] || [ -n "${SLURM_STEP_ID:-}" ]; then
    interactive=yes
    signals+=(INT HUP)
fi

fail() { echo "error: $*" >&2; exit 2; }
say() { echo "$(date '+%F %T') $*"; }

pick_python() {
    local own=$GROOT_CHECKOUT/.venv/bin/python found
    found=$(command -v python || command -v python3)
    if [ -n "${GROOT_PYTHON:-}" ]; then
        echo "$GROOT_PYTHON"
    elif [ ${#container[@]} -gt 0 ]; then
        echo python3
    elif [ -n "${GROOT_PYTHON_BEFORE+set}" ] && [ -n "$found" ] && [ "$found" != "$GROOT_PYTHON_BEFORE" ]; then
        echo "$found" # of cluster.setup
    elif [ -x "$own" ]; then
        echo "$own"
    elif [ -n "${GROOT_CALLER_PYTHON:-}" ]; then
        echo "$GROOT_CALLER_PYTHON"
    elif [ -L "$own" ] || [ -L "${own%/bin/python}" ]; then
        fail "$own leads to $(readlink -m "$own"), which $(id -un) may not run: name a python in cluster.python"
    elif [ -n "$found" ]; then
        echo "$found"
    else
        fail "no python: name one in cluster.python, or make .venv (make test)"
    fi
}

describe() { # what the processes run in, at the top of the log; refuse a Python that lacks what STAGE needs
    local said needs=(hydra)
    case $1 in
        finetune | evaluate) [ "$GROOT_STEP_PYTHON" != "$GROOT_PYTHON" ] || needs+=(torch) ;;
        record) [ "$GROOT_STEP_PYTHON" != "$GROOT_PYTHON" ] || needs+=(mani_skill) ;;
        site) needs=() ;;
    esac
    said=$("${container[@]}" "$GROOT_PYTHON" -m finetune.slurm.node_probe --python "${needs[@]}" 2>&1) ||
        fail "$GROOT_PYTHON cannot run this here: ${said##*$'\n'}. Name another one in cluster.python, or activate it in cluster.setup"
    say "${said##*$'\n'}; modules ${LOADEDMODULES:-none}; container ${container[*]:-none}; srun ${options[*]:-as it is}"
}

step() { # srun, with what every step needs and the site's options
    local cpus=${SLURM_CPUS_PER_TASK:-${SLURM_JOB_CPUS_PER_NODE:-1}} overlap=()
    if [ -n "$interactive" ]; then
        cpus=${SLURM_JOB_CPUS_PER_NODE:-$cpus} overlap=(--overlap) # the shell may be a step that holds all of it
        unset "${!SLURM_CPU_BIND@}"
    fi
    # Sites and shells that a job is submitted from may have set these; the step takes all of the job's environment and memory.
    unset SLURM_EXPORT_ENV SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE
    exec srun --export=ALL --cpus-per-task="${cpus%%[!0-9]*}" "${overlap[@]}" "${options[@]}" "$@"
}

alone() { # a stage of one process
    local command=("${container[@]}" "$GROOT_STEP_PYTHON" "$@")
    [ -n "$interactive" ] || [ ${#options[@]} -gt 0 ] || exec "${command[@]}"
    step --nodes=1 --ntasks=1 "${command[@]}"
}

ask() { # ask finetune.slurm.attempt, and export the NAME=value lines of its answer
    local answer line
    # a cancellation or preemption that comes now is heeded after the answer, which must not be cut short
    answer=$(trap '' "${signals[@]}"; exec "${container[@]}" "$GROOT_PYTHON" -m finetune.slurm.attempt "$@") || return
    [ -z "$answer" ] || while IFS= read -r line; do export "${line?}"; done <<< "$answer"
}

# Started by hand with sbatch: copy the code when the job first starts, and continue in it, with the same process id.
enter_copy() { # STAGE [key=value ...] [-- key=value ...]
    local GROOT_CODE='' note=$GROOT_CHECKOUT/.cache/slurm/$SLURM_JOB_ID # where the copy lies, for when the job starts again
    if [ -z "$interactive" ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -s "$note" ]; then
        GROOT_CODE=$(< "$note")
    fi
    if [ ! -x "${GROOT_CODE:-}/finetune_jobs/run.sh" ]; then
        ask snapshot "$@" || exit
        mkdir -p "${note%/*}" && echo "$GROOT_CODE" > "$note"
    fi
    for argument; do
        shift
        [ "$argument" = -- ] || set -- "$@" "$argument"
    done
    if [ -e "$GROOT_CODE/modality_config_of_job.py" ]; then # the robot's file as it was when the code was copied
        local robot=dataset.modality_config=$GROOT_CODE/modality_config_of_job.py
        set -- "${@/#dataset.modality_config=*/"$robot"}" "$robot"
    fi
    exec "$GROOT_CODE/finetune_jobs/run.sh" "$@"
}

job_line() { # what SLURM says of the job, in one line; nothing where it gives no answer
    SLURM_TIME_FORMAT=standard timeout 10 scontrol show job --oneliner "$GROOT_JOB_ID" 2> /dev/null
}

state_in() { # the state in such a line
    [[ $1 =~ \ JobState=([A-Z_]+) ]] && echo "${BASH_REMATCH[1]}"
}

end_time() { # Unix time of the job's limit, nothing without one; here, as a container may have another time zone
    if [ -n "${SLURM_JOB_END_TIME:-}" ]; then
        echo "$SLURM_JOB_END_TIME"
    elif [[ $GROOT_JOB =~ \ EndTime=([0-9T:-]+) ]]; then
        date -d "${BASH_REMATCH[1]}" +%s
    fi
}

pass_on() { # srun signals every process; again and again, since those that have just been started do not listen yet
    [ -z "$passed_on" ] || return 0
    passed_on=yes
    while kill -USR1 "$step" 2> /dev/null; do sleep 1; done &
    GROOT_JOB=$(job_line)
    ask signalled
}

finetune() {
    local step status early='' passed_on=''
    trap 'early=yes' "${signals[@]}"
    GROOT_JOB=$(job_line)
    GROOT_END_TIME=$(end_time)
    if [ -z "$interactive" ]; then
        GROOT_SCRIPT=$(timeout 10 scontrol write batch_script "$GROOT_JOB_ID" - 2> /dev/null)
    elif [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then # known on the nodes, not to the shell of salloc
        SLURM_GPUS_ON_NODE=$(step --nodes=1 --ntasks=1 bash -c 'echo "${SLURM_GPUS_ON_NODE:-0}"') || exit
        export SLURM_GPUS_ON_NODE
    fi
    export GROOT_JOB GROOT_END_TIME GROOT_SCRIPT
    ask begin finetune "$@" || exit
    unset GROOT_SCRIPT
    [ -z "${GROOT_RESUME:-}" ] || set -- "${@/#train.resume=*/train.resume=auto}" train.resume=auto
    [ -z "${GROOT_CACHE_DIR:-}" ] || set -- "$@" "cache_dir=$GROOT_CACHE_DIR"
    say "attempt $GROOT_ATTEMPT of job $GROOT_JOB_ID on $SLURM_JOB_NODELIST, $GROOT_PROCESSES processes a node"

    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
    export MASTER_ADDR MASTER_PORT
    local seen='[ -x "$0" ] && exec "$0" "$@"
        echo "error: $SLURMD_NODENAME does not see $0: put run_dir and runs_dir on disks that all nodes share" >&2; exit 2'
    step --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --kill-on-bad-exit=1 --wait=60 bash -c "$seen" "$root/finetune_jobs/run.sh" node "$@" &
    step=$!
    trap pass_on "${signals[@]}"
    [ -z "$early" ] || pass_on
    while wait "$step"; status=$?; kill -0 "$step" 2> /dev/null; do :; done # a signal ends `wait`, not the step
    trap '' "${signals[@]}" # from here on a few seconds that must not be cut short

    local trial now
    while :; do # until the job is as it was when that was decided: it may be cancelled in between
        GROOT_JOB=$(job_line)
        ask end "$status" || exit
        [ "$GROOT_DECISION" = requeue ] || exit "$GROOT_EXIT"
        now=$(job_line)
        [ -n "$now" ] && [ "$(state_in "$now")" != "$(state_in "$GROOT_JOB")" ] || break
    done
    for trial in {1..30}; do # a controller that is being restarted is away for some minutes
        scontrol requeue "$GROOT_JOB_ID" && break
        [ "$trial" -lt 30 ] || fail "job $GROOT_JOB_ID cannot be requeued: submit $GROOT_AGAIN to continue"
        scontrol ping > /dev/null || sleep 10
    done
    if [ -n "$GROOT_EXCLUDE" ]; then # refused while the job runs, hence after
        scontrol update "JobId=$GROOT_JOB_ID" "ExcNodeList=$GROOT_EXCLUDE" && say "from now on without $GROOT_EXCLUDE"
    fi
    exit 0
}

node() { # torchrun. The signals are for its workers: it would end on them, and the workers with it.
    trap '' USR1 USR2 TERM
    [ ${#container[@]} -gt 0 ] || command -v "$GROOT_STEP_PYTHON" > /dev/null ||
        fail "$SLURMD_NODENAME has no $GROOT_STEP_PYTHON: make that environment on a disk that all nodes share"
    local meet=(--standalone)
    [ "$SLURM_JOB_NUM_NODES" -eq 1 ] || meet=(--nnodes="$SLURM_JOB_NUM_NODES" --node-rank="$SLURM_NODEID"
        --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
    exec "${container[@]}" "$GROOT_STEP_PYTHON" -m torch.distributed.run "${meet[@]}" --nproc-per-node="$GROOT_PROCESSES" \
        --signals-to-handle=SIGINT,SIGHUP,SIGQUIT --no-python "$root/finetune_jobs/run.sh" rank "$@" \
        2> >(exec tee -a "$GROOT_ATTEMPT_DIR/node-$SLURMD_NODENAME.log" >&2)
}

rank() { # training, with a log of its own; that of rank 0 also goes to the job's
    local train=("$GROOT_STEP_PYTHON" "$root/launch_finetune_local.py" "$@") log=$GROOT_ATTEMPT_DIR/rank-$RANK.log
    [ "$RANK" -ne 0 ] || exec "${train[@]}" > >(trap '' INT; exec tee -a "$log") 2>&1
    exec "${train[@]}" >> "$log" 2>&1
}

main() { # a function, so that all of this file has been read before anything runs
    local stage=${1:-}
    case $stage in
        node | rank) "$@" ;;
        record | prepare | finetune | evaluate | site) ;;
        *) fail "run.sh: no stage \"$stage\"; record, prepare, finetune or evaluate" ;;
    esac
    [ -n "${SLURM_JOB_ID:-}" ] ||
        fail "no SLURM job here: submit a script, sbatch finetune_jobs/color_object.sbatch, or get nodes with salloc first"
    # The bare number of an array's last task stands for the whole array.
    export GROOT_JOB_ID=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    GROOT_JOB_ID=${GROOT_JOB_ID:-$SLURM_JOB_ID}
    local copied=yes
    [ -e "$root/REVISION" ] || { copied=; GROOT_CHECKOUT=$root; }
    export GROOT_CHECKOUT GROOT_INTERACTIVE=$interactive
    if [ -z "${GROOT_STEP_PYTHON:-}" ] && [[ ${options[*]} == *--container-image* ]]; then
        export GROOT_STEP_PYTHON=${GROOT_PYTHON:-python3} GROOT_PYTHON= # Pyxis: the container is the steps' only
    fi
    GROOT_PYTHON=$(pick_python) || exit
    export GROOT_PYTHON GROOT_STEP_PYTHON=${GROOT_STEP_PYTHON:-$GROOT_PYTHON}
    export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    cd "$GROOT_CHECKOUT" || exit # relative paths in arguments mean the checkout's folders
    [ -n "${GROOT_DESCRIBED:-}" ] || describe "$stage"
    export GROOT_DESCRIBED=yes
    [ -n "$copied" ] || [ "$stage" != finetune ] || enter_copy "$@" # the others have no run folder
    unset GROOT_DESCRIBED
    shift
    case $stage in
        record) alone -m simulation.record "$@" ;;
        prepare) alone "$root/prepare_conflict_data.py" "$@" ;;
        evaluate) alone "$root/evaluate_conflict.py" "$@" ;;
        site) alone "$@" ;;
        finetune) finetune "$@" ;;
    esac
}
main "$@"
