#!/usr/bin/env bash
# Fine-tune AST on ESC-50 and report the mean accuracy of five folds: ./run_esc50.sh [--lr 1e-5] ...
#   stage 0  environment
#   stage 1  download and prepare the data
#   stage 2  train and evaluate the folds
#   stage 3  summarise
# Stages and folds that are done are skipped, so the same command continues where it stopped.
# The demo trains on synthetic sounds, without a GPU or weights, and after stage 0 without network:
# ./run_esc50.sh --demo True
#SBATCH --job-name=ast-esc50 --gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000
#SBATCH --output=./log_%j.txt --open-mode=append --requeue --signal=B:USR1@120
# shellcheck disable=SC2154 # parse_options sets a variable for every option
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$HERE/../common.sh" ] || HERE=${SLURM_SUBMIT_DIR:-$HERE} # sbatch runs a copy in Slurm's spool
[ -f "$HERE/../common.sh" ] || { echo "run or submit run_esc50.sh in egs/esc50" >&2; exit 1; }
. "$HERE/../common.sh"

# The options of the recipe itself: name=default, help. --help lists those of src/run.py, too.
OPTIONS="
stage=0            first stage to run
stop_stage=3       last stage to run
recipe=published   settings of training: published, or modern (see README.md)
demo=False         train a tiny model from scratch on ten classes of synthetic sounds
clips_per_fold=8   clips of each class in each fold, in the demo
data_dir=          folder or zip in ESC-50's layout; by default ESC-50 is downloaded
prep_dir=          folder of the prepared data; by default data, or data/demo in the demo
exp_dir=           folder of the results; by default one below exp, named after the settings
folds=1 2 3 4 5    folds to run
lr=                learning rate; by default 1e-5, or 1e-4 without AudioSet pretraining
"
DEFAULTS=(--dataset esc50 --imagenet_pretrain True --audioset_pretrain True
    --n_epochs 25 --batch_size 48 --freqm 24 --timem 96
    --dataset_mean -6.6268077 --dataset_std 5.358466 --audio_length 512
    --metrics acc --loss CE --lrscheduler_start 5 --lrscheduler_decay 0.85)
DEMO=(--dataset demo --model_size tiny224 --imagenet_pretrain False --audioset_pretrain False
    --n_epochs 8 --batch_size 8 --freqm 0 --timem 0 --noise True --fstride 16 --tstride 16
    --dataset_mean -7 --dataset_std 1 --audio_length 96 --num_mel_bins 64
    --lr 2e-4 --lrscheduler_start 4 --lrscheduler_decay 0.6
    --exp_dir "$HERE/exp/demo" --prep_dir "$HERE/data/demo")

parse_options "$@"
use_recipe "$@"
if [ "$demo" = True ]; then
    DEFAULTS+=("${DEMO[@]}")
    [ "$recipe" = published ] || DEFAULTS+=(--exp_dir "$HERE/exp/demo-$recipe")
    parse_options "$@"
fi
choose_rate
refuse_higher_rates
: "${prep_dir:=$HERE/data}"
exp_dir=$(default_exp_dir "$exp_dir")

setup_environment
check_device
if in_stage 1; then
    if [ "$demo" = True ] && [ -z "$data_dir" ]; then
        data_dir=$prep_dir/sounds
        "$PYTHON" "$HERE/make_demo_data.py" --out_dir "$data_dir" --clips_per_fold "$clips_per_fold"
    fi
    "$PYTHON" "$HERE/prep_esc50.py" --prep_dir "$prep_dir" ${data_dir:+--data_dir "$data_dir"}
fi
if in_stage 2; then
    # shellcheck disable=SC2086 # folds is a list
    mark_to_begin_again "$exp_dir" $folds
    for fold in $folds; do
        echo "fold $fold: $exp_dir/fold$fold"
        train "$exp_dir/fold$fold" \
            --data_train "$prep_dir/datafiles/esc_train_data_$fold.json" \
            --data_val "$prep_dir/datafiles/esc_eval_data_$fold.json" \
            --label_csv "$HERE/data/esc_class_labels_indices.csv" --n_class 50
    done
fi
if in_stage 3; then
    "$PYTHON" "$ROOT/src/summarise_folds.py" --exp_dir "$exp_dir"
fi
