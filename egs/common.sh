# shellcheck shell=bash disable=SC2154 # parse_options sets a variable for every option
# What the recipes egs/*/run*.sh share: options, environment, launching and stages.
#
# A recipe sets HERE to its own folder and sources this file. Then it sets OPTIONS to its own
# options and DEFAULTS to the defaults of src/run.py that it changes, and calls parse_options "$@".
# If another stage than 2 trains, it sets TRAINING_STAGE, too.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STOP=            # the signal that asked the recipe to stop
TRAINING_STAGE=2 # which stage trains
FIRST_RUN=       # with --resume none, the exp_dir of the run that trains first
OLD_FILES=       # what list_old_files printed before it started
MARKS=()         # the files begin_again that this start has made

# Check the command line. Set a variable for every option, and RUN_OPTIONS for src/run.py.
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
        printf -v line %b "$line" # in a value, \n is a line break and \\ a backslash
        case $line in
            --*) RUN_OPTIONS+=("$line") ;;
            *) printf -v "${line%%=*}" %s "${line#*=}" ;;
        esac
    done <<< "$lines"
    # A job that Slurm has queued again must not start from the beginning.
    [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || { resume=auto; RUN_OPTIONS+=(--resume auto); }
}

# The settings of --recipe modern. egs/esc50/README.md says what they are worth and where that was
# measured.
MODERN=(--optim adamw --weight_decay 0.05 --freqm 0 --timem 0)

# Print the settings that --recipe names, and use them. An option that the user sets wins.
use_recipe() {
    case $recipe in
        published) echo 'recipe: published' ;;
        modern)
            echo "recipe: modern (${MODERN[*]})"
            DEFAULTS+=("${MODERN[@]}")
            parse_options "$@"
            ;;
        *) refuse "--recipe must be published or modern, got $recipe" ;;
    esac
}

# Stop because an option is wrong. $1 says why.
refuse() {
    echo "${0##*/}: $1 (--help lists the options)" >&2
    exit 2
}

# Set lr, if the user has not: without AudioSet weights, more has to be learnt.
choose_rate() {
    [ -z "$lr" ] || return 0
    if [ "$audioset_pretrain" = True ]; then lr=1e-5; else lr=1e-4; fi
    RUN_OPTIONS+=(--lr "$lr")
}

# Stop if the model would hear higher frequencies than the recipe's recordings hold.
refuse_higher_rates() {
    [ "$sample_rate" -le 16000 ] ||
        refuse "--sample_rate $sample_rate: the recordings of this recipe are at 16000 Hz, and a \
higher rate would add nothing; for your own recordings, take egs/own_dataset/run_own.sh"
}

# Stop because something other than an option is wrong. $1 says what.
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
    fail 'Python 3.11 or newer is needed, and there is none on PATH'
}

# Stage 0: set PYTHON to the Python that runs everything. If it is not set up yet, do that.
# Arguments are requirements files besides the repository's own. If the user sets AST_PYTHON, that
# Python is used unchecked.
setup_environment() {
    PYTHON=${AST_PYTHON:-}
    [ -z "$PYTHON" ] || return 0
    find_python
    PYTHON=$("$ANY_PYTHON" "$ROOT/egs/environment.py" "$ROOT/requirements.txt" "$@")
}

# Stop before any work if PyTorch cannot use the device that the user asks for. It takes Python
# seconds to find out that there is no GPU, so `auto` is only checked if something hints at a GPU.
check_device() {
    in_stage "$TRAINING_STAGE" || return 0
    case $device in
        cpu) return ;;
        auto)
            [ -n "${CUDA_VISIBLE_DEVICES:-}${SLURM_JOB_GPUS:-}" ] ||
                command -v nvidia-smi > /dev/null ||
                ls /dev/nvidia[0-9]* > /dev/null 2>&1 || return 0
            ;;
    esac
    # PYTHONSAFEPATH: with -m and -c, Python would look for modules in the working directory first.
    PYTHONSAFEPATH=1 PYTHONPATH=$ROOT/src${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m training.devices \
        "$device"
}

# Print the folder of the results: $1, or if that is empty, one below exp/ named after the settings.
default_exp_dir() {
    local model=$model_size weights=scratch
    [ "$imagenet_pretrain" = False ] || weights=imagenet
    [ "$audioset_pretrain" = False ] || weights=audioset
    [ -z "$start" ] || { model=${start##*/}; weights=start; } # it decides the size, too
    local settings=$dataset-$model-f$fstride-t$tstride-$weights-b$batch_size-lr$lr-seed$seed
    [ "${recipe:-published}" = published ] || settings+=-$recipe
    printf '%s\n' "${1:-$HERE/exp/$settings}"
}

# srun, for the processes that train. The header of a job describes one task per node, which is the
# recipe itself. The processes share all cores and GPUs of their node, so they must not inherit what
# the job says about a task.
SRUN=(env -u SLURM_CPUS_PER_TASK -u SRUN_CPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPUS
    -u SLURM_GPUS_PER_TASK -u SLURM_NTASKS_PER_GPU -u SLURM_GPU_BIND
    srun --overcommit --cpu-bind=none --export=ALL --kill-on-bad-exit=1
    ${SLURM_GPUS_ON_NODE:+"--gres=gpu:$SLURM_GPUS_ON_NODE"})

# Set `processes`, the number per machine, if the user did not: one per GPU. Without GPUs, one per
# task of the Slurm job, or one.
set_processes() {
    local tasks=1 gpus
    local count=(env PYTHONSAFEPATH=1 "$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
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
    local run=("$PYTHON" "$ROOT/src/run.py") rendezvous
    case $launcher in
        # A closed terminal sends SIGHUP to all. src/run.py leaves it to the recipe, which then asks it
        # to stop.
        single) (trap '' HUP && exec "${run[@]}" "$@") & ;;
        torchrun)
            if [ "$nodes" -eq 1 ]; then
                rendezvous=(--standalone --local-addr localhost)
            else
                rendezvous=(--nnodes "$nodes" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"
                    --master-port "${MASTER_PORT:-29500}"
                    --rdzv-conf "timeout=$(awk "BEGIN { print int(60 * $timeout_minutes + 1) }")")
            fi
            # torchrun sets OMP_NUM_THREADS to 1. Without it, src/training/processes.py divides the
            # cores among the processes.
            [ -n "${OMP_NUM_THREADS:-}" ] || run=(env -u OMP_NUM_THREADS "${run[@]}")
            "$PYTHON" "$ROOT/egs/torchrun.py" "${rendezvous[@]}" --nproc-per-node "$processes" \
                --no-python "${run[@]}" "$@" &
            ;;
        slurm)
            # srun does not say how many processes share the cores of a node.
            LOCAL_WORLD_SIZE=$processes "${SRUN[@]}" --nodes="$nodes" \
                --ntasks="$((nodes * processes))" \
                --ntasks-per-node="$processes" "${run[@]}" "$@" &
            ;;
    esac
    RUN_PID=$!
}

# Ask the processes that train to stop. $1 is the signal that came. torchrun's processes get the
# signal $2, others SIGUSR1.
stop_run() {
    STOP=$1
    [ -n "$RUN_PID" ] || return 0
    case $launcher in
        # The processes are asked directly, since torchrun kills them 30 seconds after a SIGTERM. It
        # gets one if it has not started them yet, or if there is no pkill.
        torchrun) pkill "-$2" -P "$RUN_PID" || kill -TERM "$RUN_PID" ;;
        # srun forwards SIGUSR1 to its tasks. On SIGTERM it would end them.
        *) kill -USR1 "$RUN_PID" ;;
    esac 2> /dev/null || true
}

# Say that the recipe was stopped, and how it goes on.
say_stopped() {
    if [ "${resume:-}" = none ]; then
        echo 'stopped; the same command without --resume none continues. If the folder of a run' \
            'holds a file begin_again, that run begins again: to keep its old results, remove the' \
            'file' >&2
    else
        echo 'stopped; the same command continues' >&2
    fi
}

# Set what signals do while nothing trains. Slurm may warn of the time limit: then the next training
# is asked to stop.
trap_outside_training() {
    trap 'say_stopped; trap - INT; kill -INT $$' INT # so that a loop around the recipe ends, too
    trap - TERM HUP
    trap 'STOP=USR1' USR1
}
trap_outside_training

# Run src/run.py with these arguments, and ask it to stop if a signal comes. Return its exit code.
run_to_the_end() {
    local status=0
    RUN_PID=
    # A second Ctrl-C ends the training at once. With torchrun, the recipe kills the processes. With
    # --launcher single, src/run.py gets the signal from the terminal, too, and ends.
    trap 'stop_run INT USR1; trap "stop_run INT KILL" INT' INT
    trap 'stop_run TERM USR1' TERM HUP
    trap 'stop_run USR1 USR1' USR1
    # bash would delay traps until a program in the foreground has ended.
    launch "$@"
    [ -z "$STOP" ] || stop_run "$STOP" USR1 # the signal came before the processes
    wait "$RUN_PID" || status=$?
    # A trapped signal ends `wait` too early. bash still knows the program's own status afterwards.
    while kill -0 "$RUN_PID" 2> /dev/null; do wait "$RUN_PID" || true; done
    [ -z "$STOP" ] || { status=0; wait "$RUN_PID" || status=$?; }
    trap_outside_training
    return "$status"
}

# With --resume none, mark the runs that are to begin again. $1 is exp_dir. The other arguments are
# the folds; without folds, the one run is exp_dir itself. src/run.py removes a mark together with
# the old results. So if the recipe is stopped or killed, the next start continues the runs without
# a mark, and trains those with a mark from the beginning.
mark_to_begin_again() {
    local exp_dir=$1 fold run
    shift
    if [ "$resume" != none ] || [ "$dry_run" = True ] || is_follower; then return 0; fi
    FIRST_RUN=$exp_dir${1:+/fold$1}
    for fold in "${@:-}"; do
        run=$exp_dir${fold:+/fold$fold}
        # A mark that an earlier start has left stays, whatever becomes of this one.
        if [ -d "$run" ] && [ ! -e "$run/begin_again" ]; then
            touch -- "$run/begin_again"
            MARKS+=("$run/begin_again")
        fi
    done
    OLD_FILES=$(list_old_files)
}

# List which of these two files the first run has. src/run.py removes both when it begins again: if
# the list is as before, all old results are still there.
list_old_files() { ls -d -- "$FIRST_RUN/args.json" "$FIRST_RUN/begin_again" 2> /dev/null || true; }

# Remove the marks if the training in $1 failed before it removed anything: all old results stay.
keep_old_results() {
    local mark
    if [ "$1" = "$FIRST_RUN" ] && [ "$(list_old_files)" = "$OLD_FILES" ]; then
        for mark in ${MARKS[@]+"${MARKS[@]}"}; do rm -f -- "$mark"; done
    fi
}

# Train: run src/run.py on exp_dir $1 with RUN_OPTIONS and further options, of which the first is
# --data_train. If a signal stops it, end the recipe.
train() {
    local exp_dir=$1 status=0
    if [ "$dry_run" = True ] && [ ! -f "$3" ]; then
        fail "there is no $3: first prepare the data (--stop_stage $((TRAINING_STAGE - 1)), without \
--dry_run)${folds:+, or choose other --folds}"
    fi
    set -- ${RUN_OPTIONS[@]+"${RUN_OPTIONS[@]}"} --exp_dir "$@"
    [ "$launcher" = single ] || set_processes
    if [ "$dry_run" = True ]; then
        launch "$@"
        wait "$RUN_PID"
        return
    fi
    [ -z "$STOP" ] || end_interrupted
    rm -f -- "$exp_dir/interrupted" # of an earlier start
    run_to_the_end "$@" || status=$?
    # src/run.py leaves the file or exits with 75 if it stopped early. A signal before it listened
    # ends it with 128 plus the signal's number, and a signal after its end leaves 0.
    if [ -e "$exp_dir/interrupted" ] || [ "$status" -eq 75 ]; then end_interrupted; fi
    # The number of SIGUSR1 is 10 on Linux and 30 on macOS.
    if [ -n "$STOP" ] && [[ $status =~ ^(0|130|143|$((128 + $(kill -l USR1))))$ ]]; then
        end_interrupted
    fi
    [ "$status" -eq 0 ] || keep_old_results "$exp_dir"
    return "$status"
}

# End the recipe early: the same command continues it later. Slurm queues a job again that it has
# preempted. If it only warned the job, the job queues itself again. Jobs that somebody cancels
# (SIGTERM) are not queued again.
end_interrupted() {
    say_stopped
    if [ "$STOP" = USR1 ] && [[ $0 == */slurm_script ]]; then
        echo "job $SLURM_JOB_ID is queued again"
        scontrol requeue "$SLURM_JOB_ID" || echo 'that failed: submit the job again' >&2
    fi
    exit 75
}

# Print the scores of the best epoch's model on the validation and the test set. $1 is the exp_dir.
print_best_scores() {
    echo "$1/eval_result.csv, the best epoch's model:"
    # shellcheck disable=SC2046 # the file has four numbers, one per line
    printf "  validation $metrics %s, mAUC %s\n  test       $metrics %s, mAUC %s\n" \
        $(< "$1/eval_result.csv")
}

# Tell whether this is one of several machines of torchrun, and not the first.
is_follower() { [ "$launcher" = torchrun ] && [ "$nodes" -gt 1 ] && [ "$NODE_RANK" -gt 0 ]; }

# Tell whether to run stage $1: it is between --stage and --stop_stage. The other machines only
# train, and a dry run only says what training would do.
in_stage() {
    if is_follower || [ "$dry_run" = True ]; then [ "$1" -eq "$TRAINING_STAGE" ] || return 1; fi
    [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]
}
