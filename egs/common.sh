# What the recipes share: options, environment, stages. To be sourced by egs/*/run*.sh.
#
# A recipe sets HERE to its own folder. It lists its own options, with defaults and what they are, between lines
# `# Options` and `# End of options`, and after that, as plain assignments, where it departs from the defaults below.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Options of src/run.py, under the same names; an empty one is left to run.py:
dataset=                  # name of the dataset, in messages and plots
model_size=base384        # tiny224, small224, base224 or base384
imagenet_pretrain=True    # start from DeiT's ImageNet weights
audioset_pretrain=False   # start from the 0.4593-mAP AudioSet checkpoint
fstride=10                # stride of the patches in frequency
tstride=10                # stride of the patches in time
lr=                       # learning rate
n_epochs=                 # epochs to train
batch_size=               # samples in a training batch
freqm=0                   # widest frequency mask, in mel bins
timem=0                   # widest time mask, in frames
mixup=0                   # share of the training samples that are mixed with another
bal=none                  # bal: draw training samples by the weights beside the datafile
noise=False               # add noise to the training samples and roll them in time
dataset_mean=             # mean of the fbank
dataset_std=              # standard deviation of the fbank
num_mel_bins=128          # mel bins of the fbank
audio_length=             # frames of 10 ms of the input
metrics=                  # main metric: acc or mAP
loss=                     # loss function: CE or BCE
optim=adam                # optimizer: adam or sgd
warmup=False              # raise the rate linearly over the first 1000 steps
lr_patience=0             # above 0: decay when the metric has not risen for so many epochs
lrscheduler_start=        # epoch after which the rate first decays
lrscheduler_step=1        # epochs from one decay to the next
lrscheduler_decay=        # factor of a decay
wa=False                  # average the weights of epochs wa_start to wa_end at the end
wa_start=                 # first epoch of the average
wa_end=                   # last epoch of the average
save_model=False          # keep every epoch's model, not just the best
seed=0                    # fixes the run
device=auto               # auto, cpu, cuda (all GPUs), cuda:N or mps
amp=auto                  # mixed precision: auto, bf16, fp16 or off
num_workers=-1            # processes that load data; -1: one a core
features=auto             # where fbanks are computed: cpu (data workers), gpu (in batches) or auto: gpu with CUDA
grad_accum=1              # pieces in which a batch goes through the model, to save memory
clip_grad=0               # largest norm of the gradient; 0: no limit
freq_patchout=0           # rows of the patch grid that a training step leaves out
time_patchout=0           # columns of the patch grid that a training step leaves out
compile=False             # compile the model with torch.compile
grad_checkpointing=False  # recompute activations, to save memory
n_print_steps=100         # steps from one report to the next
resume=auto               # auto: go on from the checkpoint in exp_dir; none: start again
checkpoint_minutes=15     # minutes from one checkpoint inside an epoch to the next
timeout_minutes=30        # how long one of several processes waits for the others before the run ends
max_bad_audio=0.01        # share of an epoch's samples that may be replaced since their audio cannot be read
force=False               # go on although settings have changed
# End of options

# Options of launching:
launcher=auto             # auto, single (one process), torchrun (several) or slurm (on the nodes of the job)
nodes=                    # machines that train together; empty: those of the Slurm job, or one
processes=                # processes a machine; empty: one a GPU, or without GPUs one a Slurm task
# End of options

STOP=            # the signal that asked the recipe to stop
TRAINING_STAGE=2 # which stage trains

# The lines `name=default  # what it is` of the options in the files named, of blocks whose heading goes on with $1.
option_lines() {
    local heading=$1
    shift
    sed -n "\\|^# Options$heading|,/^# End of options/p" "$@" | grep -E '^[a-z][a-z0-9_]*='
}

option_names() { option_lines "$@" | sed 's/=.*//'; }

usage() {
    sed -n '2,/^[^#]/p' "$0" | sed -n '/^#SBATCH/d; s/^# \{0,1\}//p'
    echo 'Options, with their defaults:'
    option_lines '' "$0" "${BASH_SOURCE[0]}" | sed -E 's/^([a-z0-9_]*)=.*# (.*)/\1|\2/' | awk -F'|' '!seen[$1]++' |
        while IFS='|' read -r name text; do printf '  --%-18s %-12s %s\n' "$name" "${!name}" "$text"; done
}

# Set the variable of every --name value or --name=value; dashes in a name are underscores.
parse_options() {
    local name value
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --*=*) name=${1%%=*} value=${1#*=} ;;
            --*) name=$1; [ $# -gt 1 ] || refuse "$1 needs a value"; value=$2; shift ;;
            *) refuse "unexpected argument: $1" ;;
        esac
        shift
        name=${name#--} name=${name//-/_}
        if ! [[ $name =~ ^[a-z][a-z0-9_]*$ ]] ||
            ! option_names '' "$0" "${BASH_SOURCE[0]}" | grep -qx "$name"; then
            refuse "unknown option: --$name"
        fi
        case ${!name}/$value in # a folder may be called true
            True/[Tt]rue | True/TRUE | False/[Tt]rue | False/TRUE) value=True ;;
            True/[Ff]alse | True/FALSE | False/[Ff]alse | False/FALSE) value=False ;;
            True/* | False/*) refuse "--$name wants True or False, not $value" ;;
        esac
        printf -v "$name" %s "$value"
    done
    choose_launcher
}

refuse() {
    { usage; echo; echo "${0##*/}: $1"; } >&2 # the list is long: what is wrong comes last
    exit 2
}

# Stage 0: PYTHON is the interpreter that runs everything, its environment made where there is none. Arguments are
# requirements files besides the repository's own. AST_PYTHON, where a user sets it, is taken as it is.
setup_environment() {
    local any_python name
    # Threads that spin while they wait starve each other on a busy machine: 49 samples/s instead of 9 to 21 were
    # measured for a tiny model beside two busy processes, and no difference on an idle machine.
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
    [ -z "${AST_PYTHON:-}" ] || { PYTHON=$AST_PYTHON; return; }
    # The first that is new enough to look for the right one.
    for name in python python3 python3.14 python3.13 python3.12 python3.11; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2> /dev/null && any_python=$name && break
    done
    [ -n "${any_python:-}" ] || fail 'Python 3.11 or newer is needed: there is none on PATH'
    PYTHON=$("$any_python" "$ROOT/egs/environment.py" "$ROOT/requirements.txt" "$@")
}

# Stop before any work if the device that was asked for is not there, or a GPU is that PyTorch cannot use. Python takes
# seconds to say that there is none, so for auto it is asked only if something hints at one.
check_device() {
    in_stage "$TRAINING_STAGE" || return 0
    case $device in
        cpu) return ;;
        auto)
            [ -n "${CUDA_VISIBLE_DEVICES:-}${SLURM_JOB_GPUS:-}" ] || ls /dev/nvidia[0-9]* > /dev/null 2>&1 ||
                command -v nvidia-smi > /dev/null || return 0
            ;;
    esac
    "$PYTHON" "$ROOT/src/hardware.py" "$device"
}

# Where results go: $1, or below exp/ under a name made of the settings.
default_exp_dir() {
    local weights=scratch
    [ "$imagenet_pretrain" = False ] || weights=imagenet
    [ "$audioset_pretrain" = False ] || weights=audioset
    printf '%s\n' "${1:-$HERE/exp/$dataset-$model_size-f$fstride-t$tstride-$weights-b$batch_size-lr$lr-seed$seed}"
}

# RUN_OPTIONS is what the recipe passes on to src/run.py.
collect_run_options() {
    local name
    RUN_OPTIONS=()
    [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || resume=auto # a job that was queued again goes on, whatever it began with
    for name in $(option_names ' of src/run.py' "${BASH_SOURCE[0]}"); do
        [ -z "${!name}" ] || RUN_OPTIONS+=("--$name=${!name}")
    done
}

# Stop with one sentence, where it is not an option alone that is wrong.
fail() {
    echo "error: $1" >&2
    exit 1
}

# Turn --launcher auto into what fits, and look whether everything is there that it needs.
choose_launcher() {
    local name
    for name in nodes processes; do
        [[ ${!name} =~ ^([1-9][0-9]*)?$ ]] || refuse "--$name wants a whole number above 0, got ${!name}"
    done
    [ "${SLURM_STEP_NUM_TASKS:-1}" -eq 1 ] ||
        fail "srun starts this recipe $SLURM_STEP_NUM_TASKS times: start it once, it starts the processes itself"
    case $launcher in
        auto)
            if [ -n "${SLURM_JOB_ID:-}" ] && { [ "${SLURM_NNODES:-1}" -gt 1 ] || [ "${SLURM_NTASKS:-1}" -gt 1 ]; }; then
                launcher=slurm
            elif [ "${nodes:-1}" -gt 1 ] || [ "${processes:-1}" -gt 1 ]; then
                launcher=torchrun
            else
                launcher=single
            fi
            ;;
        single)
            if [ "${nodes:-1}" -ne 1 ] || [ "${processes:-1}" -ne 1 ]; then
                refuse '--launcher single is one process: leave out --nodes and --processes, or take torchrun or slurm'
            fi
            ;;
        torchrun | slurm) ;;
        *) refuse "--launcher is auto, single, torchrun or slurm, not $launcher" ;;
    esac
    if [ "$launcher" = slurm ]; then
        [ -n "${SLURM_JOB_ID:-}" ] || fail '--launcher slurm is for the inside of a Slurm job: sbatch, or salloc before'
        : "${nodes:=${SLURM_NNODES:-1}}"
        [ "$nodes" -le "${SLURM_NNODES:-1}" ] ||
            fail "--nodes $nodes, but the job has ${SLURM_NNODES:-1}: sbatch --nodes=$nodes"
    fi
    : "${nodes:=1}"
    if [ "$launcher" = torchrun ] && [ "$nodes" -gt 1 ]; then
        export MASTER_PORT=${MASTER_PORT:-29500} # torchrun's own default
        if [ -z "${MASTER_ADDR:-}" ] || ! [[ ${NODE_RANK:-} =~ ^[0-9]+$ ]] ||
            [ "$NODE_RANK" -ge "$nodes" ]; then
            fail "--nodes $nodes: start the same line on each machine, with MASTER_ADDR=the name of the first one and \
NODE_RANK=0 there, 1 to $((nodes - 1)) on the others"
        fi
    fi
}

# Whether this machine is another than the first of those on which somebody started the recipe.
is_follower() { [ "$launcher" = torchrun ] && [ "$nodes" -gt 1 ] && [ "$NODE_RANK" -gt 0 ]; }

# Start src/run.py with these arguments in the background, as --launcher says; RUN_PID is the process to wait for.
launch() {
    local several=("$PYTHON" "$ROOT/egs/launch.py" --timeout_minutes "$timeout_minutes")
    [ -z "$processes" ] || several+=(--processes "$processes")
    case $launcher in
        single) "$PYTHON" "$ROOT/src/run.py" "$@" & ;;
        torchrun)
            [ "$nodes" -eq 1 ] || several+=(--nodes "$nodes" --node_rank "$NODE_RANK")
            "${several[@]}" -- "$@" &
            ;;
        slurm)
            [ "${SLURM_NTASKS:-1}" -le "$SLURM_NNODES" ] ||
                several+=(--without_gpus "$((SLURM_NTASKS / SLURM_NNODES))")
            # One task a node that has all the job has there, whatever was said about the tasks of the job.
            env -u SLURM_CPUS_PER_TASK -u SRUN_CPUS_PER_TASK -u SLURM_TRES_PER_TASK -u SLURM_GPUS_PER_TASK \
                -u SLURM_NTASKS_PER_GPU -u SLURM_GPU_BIND \
                srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --export=ALL \
                --kill-on-bad-exit=1 "${several[@]}" -- "$@" &
            ;;
    esac
    RUN_PID=$!
}

# Ask what `launch` started to stop. With SIGUSR1, which srun passes on; on SIGTERM it would end its tasks.
stop_run() {
    STOP=$1
    [ -z "$RUN_PID" ] || kill -USR1 "$RUN_PID" 2> /dev/null || true
}

# A signal before the time limit that comes in another stage counts at the next training.
trap 'STOP=USR1' USR1

# Train: run src/run.py on exp_dir $1 with RUN_OPTIONS and further options. It runs in the background, since bash would
# delay its traps for a child in the foreground. Where it was asked to stop, the recipe ends.
train() {
    local exp_dir=$1 status=0
    shift
    [ -z "$STOP" ] || go_on_later
    rm -f -- "$exp_dir/interrupted" # of an earlier start
    RUN_PID=
    # A terminal sends Ctrl-C to the program itself as well, and a second SIGINT would end it at once.
    trap 'stop_run TERM' INT TERM
    trap 'stop_run USR1' USR1
    # bash 3.2 refuses to expand an empty array.
    launch ${RUN_OPTIONS[@]+"${RUN_OPTIONS[@]}"} --exp_dir "$exp_dir" "$@"
    [ -z "$STOP" ] || stop_run "$STOP" # it came before there was something to pass it on to
    wait "$RUN_PID" || status=$?
    while kill -0 "$RUN_PID" 2>/dev/null; do wait "$RUN_PID" || true; done # a trapped signal ends `wait` too early
    [ -z "$STOP" ] || { status=0; wait "$RUN_PID" || status=$?; }          # bash remembers the program's own status
    trap - INT TERM
    trap 'STOP=USR1' USR1
    # The mark says that the run wants to go on, and so does its exit code where no launcher changed it; one that was
    # asked to stop before it listened died of the signal, and one that had done ended with 0.
    if [ -e "$exp_dir/interrupted" ] || [ "$status" -eq 75 ]; then go_on_later; fi
    [ -z "$STOP" ] || [[ ! $status =~ ^(0|130|138|143)$ ]] || go_on_later
    return "$status"
}

# End the recipe, to be started again with the same options. A batch job that Slurm warned is queued again; one that
# somebody cancels (SIGTERM) is not, and one that is preempted is queued again by Slurm itself.
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

# Whether a stage lies between --stage and --stop_stage. Of several machines, the first alone does more than train.
in_stage() {
    # shellcheck disable=SC2154 # options of the recipe
    [[ $stage =~ ^[0-9]$ && $stop_stage =~ ^[0-9]$ ]] || refuse '--stage and --stop_stage want a number'
    ! is_follower || [ "$1" -eq "$TRAINING_STAGE" ] || return 1
    [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]
}
