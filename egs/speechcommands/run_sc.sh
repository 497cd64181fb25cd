#!/usr/bin/env bash
# Fine-tune AST on Speech Commands V2, and report the accuracy on its 35 words:
# ./run_sc.sh [--lr 1e-4] ...
#   stage 0  environment
#   stage 1  download and prepare the data
#   stage 2  train, and evaluate the best epoch's model
# Stages that are done are skipped, so the same command continues where it stopped.
#SBATCH --job-name=ast-sc --gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000
#SBATCH --output=./log_%j.txt --open-mode=append --requeue --signal=B:USR1@120
# shellcheck disable=SC2154 # parse_options sets a variable for every option
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$HERE/../common.sh" ] || HERE=${SLURM_SUBMIT_DIR:-$HERE} # sbatch runs a copy in Slurm's spool
[ -f "$HERE/../common.sh" ] || { echo "run or submit run_sc.sh in egs/speechcommands" >&2; exit 1; }
. "$HERE/../common.sh"

# The options of the recipe itself: name=default, help. --help lists those of src/run.py, too.
OPTIONS="
stage=0        first stage to run
stop_stage=2   last stage to run
data_dir=      folder or tar.gz in Speech Commands' layout; by default it is downloaded
prep_dir=      folder of the prepared data; by default data
exp_dir=       folder of the results; by default one below exp, named after the settings
"
DEFAULTS=(--dataset speechcommands --imagenet_pretrain True --audioset_pretrain False
    --lr 2.5e-4 --n_epochs 30 --batch_size 128 --freqm 48 --timem 48 --mixup 0.6 --noise True
    --dataset_mean -6.845978 --dataset_std 5.5654526 --audio_length 128
    --metrics acc --loss BCE --lrscheduler_start 5 --lrscheduler_decay 0.85 --save_model True)

parse_options "$@"
refuse_higher_rates
: "${prep_dir:=$HERE/data}"
exp_dir=$(default_exp_dir "$exp_dir")

setup_environment
check_device
if in_stage 1; then
    "$PYTHON" "$HERE/prep_sc.py" --prep_dir "$prep_dir" ${data_dir:+--data_dir "$data_dir"}
fi
if in_stage 2; then
    mark_to_begin_again "$exp_dir"
    train "$exp_dir" \
        --data_train "$prep_dir/datafiles/speechcommand_train_data.json" \
        --data_val "$prep_dir/datafiles/speechcommand_valid_data.json" \
        --data_eval "$prep_dir/datafiles/speechcommand_eval_data.json" \
        --label_csv "$HERE/data/speechcommands_class_labels_indices.csv" --n_class 35
    [ "$dry_run" = True ] || print_best_scores "$exp_dir"
fi
