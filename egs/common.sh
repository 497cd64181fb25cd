# shellcheck shell=bash disable=SC2154 # parse_options sets a variable for every option
# What the recipes share: options, environment, launching, stages. To be sourced by egs/*/run*.sh.
#
# A recipe sets HERE to its own folder, OPTIONS to its own options and DEFAULTS to its departures
# from the defaults of src/run.py, and calls parse_options "$@". src/training/options.py declares what is
# passed on.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STOP=            # the signal that asked the recipe to stop
TRAINING_STAGE=2 # which stage trains

# Check the command line; set a variable for every option, and RUN_OPTIONS for src/run.py.
parse_options() {
    local line lines command
    find_python
    # bash 3.2 refuses to expand an empty array.
    command=("$ANY_PYTHON" "$ROOT/egs/recipe_options.py" "$0" "$OPTIONS"
        ${DEFAULTS[@]+"${DEFAULTS[@]}"} -- "$@")
    for line; do
        case $line in --help | -h) "${command[@]}"; exit ;; esac
    done
    lines=$("${command[@]}")
    RUN_OPTIONS=()
    while IFS= read -r line; do
        printf -v line %b "$line" # a line break in a value is \n, and a backslash \\
        case $line in
            --*) RUN_OPTIONS+=("$line") ;;
            *) printf -v "${line%%=*}" %s "${line#*=}" ;;
        esac
    done <<< "$lines"
    # A job that was queued again goes on, whatever it began with.
    [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || { resume=auto; RUN_OPTIONS+=(--resume auto); }
}

# Stop because of what the command line says.
refuse() {
    echo "${0##*/}: $1 (--help lists the options)" >&2
    exit 2
}

# Stop with one sentence, if it is not an option alone that is wrong.
fail() {
    echo "error: $1" >&2
    exit 1
}

# Set ANY_PYTHON to a Python that can read options and make environments.
find_python() {
    local name
    for name in ${AST_PYTHON:+"$AST_PYTHON"} python python3 python3.14 python3.13 python3.12 \
        python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null; then
            ANY_PYTHON=$name
            return
        fi
    done
    fail 'Python 3.11 or newer is needed: there is none on PATH'
}

# Stage 0: PYTHON is the interpreter that runs everything, its environment made if there is none.
# Arguments are requirements files besides the repository's own. AST_PYTHON, if a user sets it, is
# taken as it is.
setup_environment() {
    # Threads that spin while they wait starve each other on a busy machine: 49 samples/s instead
    # of 9 to 21 were measured for a tiny model beside two busy processes, and no difference on an
    # idle one.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
    PYTHON=${AST_PYTHON:-}
    [ -z "$PYTHON" ] || return 0
    find_python
    PYTHON=$("$ANY_PYTHON" "$ROOT/egs/environment.py" "$ROOT/requirements.txt" "$@")
}

# Stop before any work if the device that was asked for is not there, or a GPU is that PyTorch
# cannot use. Python takes seconds to say that there is none, so for auto it is asked only if
# something hints at one.
check_device() {
    in_stage "$TRAINING_STAGE" || return 0
    case $device in
        cpu) return ;;
        auto)
            [ -n "${CUDA_VISIBLE_DEVICES:-}${SLURM_JOB_GPUS:-}" ] ||
                command -v nvidia-smi > /dev/null || ls /dev/nvidia[0-9]* > /dev/null 2>&1 || return 0
            ;;
    esac
    (cd "$ROOT/src" && "$PYTHON" -m training.devices "$device")
}

# Where results go: $1, or below exp/ under a name made of the settings.
default_exp_dir() {
    local weights=scratch
    [ "$imagenet_pretrain" = False ] || weights=imagenet
    [ "$audioset_pretrain" = False ] || weights=audioset
    local settings=$dataset-$model_size-f$fstride-t$tstride-$weights-b$batch_size-lr$lr-seed$seed
    printf '%s\n' "${1:-$HERE/exp/$settings}"
}

# Whether this machine is another than the first of those on which somebody started the recipe.
is_follower() { [ "$launcher" = torchrun ] && [ "$nodes" -gt 1 ] && [ "$NODE_RANK" -gt 0 ]; }

# srun, for the processes that train. The header of a job describes one task per node, which is the
# recipe itself; here all tasks of a node share its cores and GPUs, whatever the header says.
SRUN=(env -u SLURM_CPUS_PER_TASK -u SRUN_CPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPUS
    -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU -u SLURM_GPU_BIND
    srun --overcommit --cpu-bind=none --export=ALL --kill-on-bad-exit=1
    ${SLURM_GPUS_ON_NODE:+"--gres=gpu:$SLURM_GPUS_ON_NODE"})

# Set `processes`, the number per machine, if the user did not: one per GPU, else one per task of the
# Slurm job, else one.
set_processes() {
    local tasks=1 gpus count=("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    [ -z "$processes" ] || return 0
    if [ "$launcher" = slurm ]; then
        [ "${SLURM_NTASKS:-1}" -le "$SLURM_NNODES" ] || tasks=$((SLURM_NTASKS / SLURM_NNODES))
        count=("${SRUN[@]}" --nodes=1 --ntasks=1 --ntasks-per-node=1 "${count[@]}")
    fi
    gpus=$("${count[@]}" < /dev/null)
    if [ "$gpus" -gt 0 ]; then processes=$gpus; else processes=$tasks; fi
}

# Start src/run.py with these arguments in the background, in the way that --launcher says. Set
# RUN_PID to the process to wait for.
launch() {
    local run=("$PYTHON" "$ROOT/src/run.py") meeting
    case $launcher in
        single) "${run[@]}" "$@" & ;;
        torchrun)
            if [ "$nodes" -eq 1 ]; then
                meeting=(--standalone --local-addr localhost)
            else
                meeting=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
                    --master-port "${MASTER_PORT:-29500}"
                    --rdzv-conf "timeout=$(awk "BEGIN { print int(60 * $timeout_minutes + 1) }")")
            fi
            # torchrun sets the variable to 1. Without it, src/distributed.py divides the cores
            # among the processes.
            [ -n "${OMP_NUM_THREADS:-}" ] || run=(env -u OMP_NUM_THREADS "${run[@]}")
            "$PYTHON" "$ROOT/egs/torchrun.py" "${meeting[@]}" --nproc-per-node "$processes" \
                --no-python "${run[@]}" "$@" &
            ;;
        slurm)
            "${SRUN[@]}" --nodes="$nodes" --ntasks="$((nodes * processes))" \
                --ntasks-per-node="$processes" "${run[@]}" "$@" &
            ;;
    esac
    RUN_PID=$!
}

# Ask the processes that `launch` started to stop. $1 is the signal that came, $2 the signal to send.
stop_run() {
    STOP=$1
    [ -n "$RUN_PID" ] || return 0
    case $launcher in
        # torchrun would kill its processes 30 seconds after it gets SIGTERM, so they are told
        # themselves. If it has not started any, or there is no pkill, it gets SIGTERM.
        torchrun) pkill "-$2" -P "$RUN_PID" || kill -TERM "$RUN_PID" ;;
        # srun forwards SIGUSR1 to its tasks; on SIGTERM it would end them.
        *) kill -USR1 "$RUN_PID" ;;
    esac 2> /dev/null || true
}

# A signal before the time limit that comes in another stage counts at the next training.
trap 'STOP=USR1' USR1

# Train: run src/run.py on exp_dir $1 with RUN_OPTIONS and further options. It runs in the
# background, since bash would delay its traps for a child in the foreground. If it was asked to
# stop, the recipe ends.
train() {
    local exp_dir=$1 status=0
    set -- ${RUN_OPTIONS[@]+"${RUN_OPTIONS[@]}"} --exp_dir "$@"
    [ "$launcher" = single ] || set_processes
    if [ "$dry_run" = True ]; then
        launch "$@"
        wait "$RUN_PID"
        return
    fi
    [ -z "$STOP" ] || go_on_later
    rm -f -- "$exp_dir/interrupted" # of an earlier start
    RUN_PID=
    # A second Ctrl-C does not wait. (Without a launcher, the terminal sends it to src/run.py, too.)
    trap 'stop_run INT USR1; trap "stop_run INT KILL" INT' INT
    trap 'stop_run TERM USR1' TERM HUP
    trap 'stop_run USR1 USR1' USR1
    launch "$@"
    [ -z "$STOP" ] || stop_run "$STOP" USR1 # it came before there was something to pass it on to
    wait "$RUN_PID" || status=$?
    # A trapped signal ends `wait` too early, and bash remembers the program's own status.
    while kill -0 "$RUN_PID" 2>/dev/null; do wait "$RUN_PID" || true; done
    [ -z "$STOP" ] || { status=0; wait "$RUN_PID" || status=$?; }
    trap - INT TERM HUP
    trap 'STOP=USR1' USR1
    # The mark says that the run wants to go on, and so does its exit code if no launcher changed
    # it. One that was asked to stop before it listened died of the signal, and one that had done
    # ended with 0.
    if [ -e "$exp_dir/interrupted" ] || [ "$status" -eq 75 ]; then go_on_later; fi
    [ -z "$STOP" ] || [[ ! $status =~ ^(0|130|138|143)$ ]] || go_on_later
    return "$status"
}

# End the recipe, to be started again with the same options. A batch job that Slurm warned is
# queued again; one that somebody cancels (SIGTERM) is not, and one that is preempted is queued
# again by Slurm itself.
go_on_later() {
    if [ "$resume" = none ]; then
        echo 'stopped; the same command without --resume none goes on' >&2
    else
        echo 'stopped; the same command goes on' >&2
    fi
    if [ "$STOP" = USR1 ] && [[ $0 == */slurm_script ]]; then
        echo "job $SLURM_JOB_ID is queued again"
        scontrol requeue "$SLURM_JOB_ID" || echo 'it could not be: submit it again' >&2
    fi
    exit 75
}

# Whether a stage lies between --stage and --stop_stage. Of several machines, the first alone does
# more than train, and a dry run only says what training would do.
in_stage() {
    if is_follower || [ "$dry_run" = True ]; then [ "$1" -eq "$TRAINING_STAGE" ] || return 1; fi
    [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]
}
