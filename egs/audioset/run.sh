#!/usr/bin/env bash
# Train AST on AudioSet, the full or the balanced training set: ./run.sh [--set balanced] [--batch_size 12] ...
#   stage 0  environment    stage 1  weights for balanced sampling    stage 2  train, average the weights, evaluate
# The same line goes on where it broke off. The datafiles are made before, of audio of your own, by prep_audioset.py.
# Defaults that depend on --set are listed for full; balanced has --lr 5e-5 --n_epochs 25 --bal none
# --lrscheduler_start 10 --lrscheduler_step 5 --wa_start 6 --wa_end 25.
#SBATCH --job-name=ast-audioset --gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000 --output=./log_%j.txt
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$HERE/../common.sh" ] || HERE=${SLURM_SUBMIT_DIR:-$HERE} # sbatch runs a copy in Slurm's spool
[ -f "$HERE/../common.sh" ] || { echo "run or submit run.sh in egs/audioset" >&2; exit 1; }
. "$HERE/../common.sh"

# Options of the recipe; those of src/run.py are in egs/common.sh:
stage=0                   # first stage to run
stop_stage=2              # last stage to run
set=full                  # full or balanced: which training set, and the settings that go with it
data_train=               # datafile of the training set; empty: data/datafiles/[balanced_]train_data.json
data_val=                 # datafile of the evaluation set; empty: data/datafiles/eval_data.json
label_csv=                # label file; empty: AudioSet's, in data/
exp_dir=                  # where results go; empty: below exp, named after the settings
# End of options

dataset=audioset imagenet_pretrain=True audioset_pretrain=False
batch_size=12 freqm=48 timem=192 mixup=0.5
dataset_mean=-4.2677393 dataset_std=4.5689974 audio_length=1024
metrics=mAP loss=BCE warmup=True lrscheduler_decay=0.5 wa=True save_model=True

full_settings() {
    lr=1e-5 n_epochs=5 bal=bal lrscheduler_start=2 lrscheduler_step=1 wa_start=1 wa_end=5
}

balanced_settings() {
    lr=5e-5 n_epochs=25 bal=none lrscheduler_start=10 lrscheduler_step=5 wa_start=6 wa_end=25
}

# Stop where a datafile is not there.
need_datafile() {
    [ -f "$1" ] && return
    echo "error: the datafile $1 does not exist: make it with $HERE/prep_audioset.py, or name another" >&2
    exit 1
}

full_settings
parse_options "$@"
case $set in
    full) : "${data_train:=$HERE/data/datafiles/train_data.json}" ;;
    balanced)
        balanced_settings
        parse_options "$@" # what the user says goes before what the set says
        : "${data_train:=$HERE/data/datafiles/balanced_train_data.json}"
        ;;
    *) refuse "--set is full or balanced, not $set" ;;
esac
: "${data_val:=$HERE/data/datafiles/eval_data.json}"
: "${label_csv:=$HERE/data/class_labels_indices.csv}"
exp_dir=$(dataset=$dataset-$set; default_exp_dir "$exp_dir")

if in_stage 1 || in_stage 2; then
    need_datafile "$data_train"
    need_datafile "$data_val"
    [ -f "$label_csv" ] || { echo "error: the label file $label_csv does not exist" >&2; exit 1; }
fi
setup_environment
check_device
if in_stage 1; then
    weights=${data_train%.json}_weight.csv
    if [ "$bal" = bal ] && { [ ! -s "$weights" ] || [ "$data_train" -nt "$weights" ]; }; then
        "$PYTHON" "$HERE/gen_weight_file.py" "$data_train" --label_csv "$label_csv"
    fi
fi
if in_stage 2; then
    collect_run_options
    classes=$(($(grep -c '[^[:space:]]' "$label_csv") - 1)) # a line a class, after the header
    train "$exp_dir" --data_train "$data_train" --data_val "$data_val" --label_csv "$label_csv" --n_class "$classes"
fi
