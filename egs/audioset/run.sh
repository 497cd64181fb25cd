#!/usr/bin/env bash
# Train AST on AudioSet, the full or the balanced training set: ./run.sh [--set balanced] ...
#   stage 0  environment
#   stage 1  weights for balanced sampling
#   stage 2  train, average the weights, evaluate
# The same command continues where it stopped. Make the datafiles of your audio first, with
# prep_audioset.py. The defaults that --help lists are those of --set full; BALANCED in this file
# lists what --set balanced changes.
#SBATCH --job-name=ast-audioset --gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000
#SBATCH --output=./log_%j.txt --open-mode=append --requeue --signal=B:USR1@120
# shellcheck disable=SC2154 # parse_options sets a variable for every option
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$HERE/../common.sh" ] || HERE=${SLURM_SUBMIT_DIR:-$HERE} # sbatch runs a copy in Slurm's spool
[ -f "$HERE/../common.sh" ] || { echo "run or submit run.sh in egs/audioset" >&2; exit 1; }
. "$HERE/../common.sh"

# The options of the recipe itself: name=default, help. --help lists those of src/run.py, too.
OPTIONS="
stage=0        first stage to run
stop_stage=2   last stage to run
set=full       full or balanced: the training set, and its settings
data_train=    datafile of the training set; by default data/datafiles/[balanced_]train_data.json
data_val=      datafile of AudioSet's evaluation set; by default data/datafiles/eval_data.json
label_csv=     label file; by default data/class_labels_indices.csv
exp_dir=       folder of the results; by default one below exp, named after the settings
"
DEFAULTS=(--dataset audioset --imagenet_pretrain True --audioset_pretrain False
    --lr 1e-5 --n_epochs 5 --batch_size 12 --freqm 48 --timem 192 --mixup 0.5 --bal bal
    --dataset_mean -4.2677393 --dataset_std 4.5689974 --audio_length 1024
    --metrics mAP --loss BCE --warmup True
    --lrscheduler_start 2 --lrscheduler_step 1 --lrscheduler_decay 0.5
    --wa True --wa_start 1 --wa_end 5 --save_model True)
BALANCED=(--lr 5e-5 --n_epochs 25 --bal none --lrscheduler_start 10 --lrscheduler_step 5
    --wa_start 6 --wa_end 25)

# Stop if datafile $1 does not exist.
need_datafile() {
    [ -f "$1" ] ||
        fail "the datafile $1 does not exist: make it with $HERE/prep_audioset.py, or name another"
}

parse_options "$@"
case $set in
    full) : "${data_train:=$HERE/data/datafiles/train_data.json}" ;;
    balanced)
        DEFAULTS+=("${BALANCED[@]}")
        parse_options "$@"
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
    [ -f "$label_csv" ] || fail "the label file $label_csv does not exist"
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
    classes=$(($(grep -c '[^[:space:]]' "$label_csv") - 1)) # one line per class, after the header
    mark_to_begin_again "$exp_dir"
    train "$exp_dir" --data_train "$data_train" --data_val "$data_val" \
        --label_csv "$label_csv" --n_class "$classes"
fi
