#!/usr/bin/env bash
# Fine-tune AST on your own dataset: ./run_own.sh --data DIR_OR_CSV [--n_folds 5] ...
# DIR has one folder per class. Or it has the folders train, val and perhaps test, with such folders
# in each. A CSV has the columns path and labels (several are separated by ;). It may have a column
# split or fold, and a column group: if the recipe splits, clips of one group stay together.
#   stage 0  environment
#   stage 1  split the data
#   stage 2  statistics of the training data; with --bal bal, the weights of its samples, too
#   stage 3  train and evaluate
#   stage 4  summarise
# Stages and folds that are done are skipped, so the same command continues where it stopped.
#SBATCH --job-name=ast-own --gres=gpu:4 --ntasks-per-node=1 -c 16 --mem=48000
#SBATCH --output=./log_%j.txt --open-mode=append --requeue --signal=B:USR1@120
# shellcheck disable=SC2154 # parse_options sets a variable for every option
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$HERE/../common.sh" ] || HERE=${SLURM_SUBMIT_DIR:-$HERE} # sbatch runs a copy in Slurm's spool
[ -f "$HERE/../common.sh" ] || { echo "run or submit run_own.sh in egs/own_dataset" >&2; exit 1; }
. "$HERE/../common.sh"

# The options of the recipe itself: name=default, help. --help lists those of src/run.py, too.
OPTIONS="
stage=0            first stage to run
stop_stage=4       last stage to run
recipe=published   settings of training: published, or modern (see README.md)
data=              folder or CSV of the dataset
prep_dir=          where prepared data go; by default egs/own_dataset/data/NAME, NAME as in --data
exp_dir=           folder of the results; by default one below exp, named after the settings
label_csv=         label file that fixes the classes and their order; by default made from the data
val_share=0.2      share of the clips to validate on, if the data have no split
test_share=0.0     share of the clips to test on, if the data have no split
n_folds=0          cross-validate with this many folds; 0: one split
split_seed=0       seed of the split, apart from that of the training
folds=             folds to run, as in '1 3'; by default all
dataset=           name of the dataset in messages and plots; by default that of --data
dataset_mean=      mean of the fbank; by default computed
dataset_std=       standard deviation of the fbank; by default computed
audio_length=      frames of 10 ms of the input; by default enough for 95 % of the clips, at most 1024
freqm=             frequency masks are narrower than this, in mel bins; by default 3/8 of all
timem=             time masks are shorter than this, in frames; by default a fifth of the input
metrics=           main metric; by default acc if every clip has one label, else mAP
loss=              loss function; by default CE if every clip has one label, else BCE
lr=                learning rate; by default 1e-5, or 1e-4 without AudioSet pretraining
"
DEFAULTS=(--imagenet_pretrain True --audioset_pretrain True
    --n_epochs 25 --batch_size 12 --lrscheduler_start 5 --lrscheduler_decay 0.85)
TRAINING_STAGE=3

# Print the name of the folder or file $1.
dataset_name() {
    local name
    if [ -d "$1" ]; then
        basename "$(cd "$1" && pwd)" # $1 may be . or ..
    else
        name=$(basename "$1")
        echo "${name%.*}"
    fi
}

# Print the path of the datafile of part $1 (train, val, test), of fold $2 if there are folds.
datafile() { echo "$prep_dir/datafiles/$1_data${2:+_$2}.json"; }

# Print the path of the file with the mean and standard deviation of fold $1's training data. They
# depend on the size of the input and on the sample rate.
stats_file() {
    local train_data rate=
    train_data=$(datafile train "$1")
    [ "$sample_rate" -eq 16000 ] || rate=_${sample_rate}Hz
    echo "${train_data%.json}_stats_${num_mel_bins}x$audio_length$rate.txt"
}

# Print what run_options.txt says about option $1.
prepared_option() { sed -n "s/^--$1=//p" "$prep_dir/run_options.txt"; }

# Set the options that the user left open to what the prepared data need, and RUNS to the folds to
# run. Data without folds have one run, ''.
read_prepared() {
    local name fold=1
    [ -f "$prep_dir/run_options.txt" ] || fail "$prep_dir is not prepared: run stage 1"
    for name in loss metrics audio_length; do
        [ -n "${!name}" ] || printf -v "$name" %s "$(prepared_option "$name")"
    done
    # Only a number: bash runs code inside a value that it computes with.
    [[ $audio_length =~ ^[0-9]+$ ]] ||
        fail "$prep_dir/run_options.txt lacks --audio_length: remove this file and run stage 1"
    : "${freqm:=$((num_mel_bins * 3 / 8))}" "${timem:=$((audio_length / 5))}"
    if [ -f "$(datafile train)" ]; then
        [ -z "$folds" ] || refuse "--folds $folds: the data in $prep_dir are not in folds"
        RUNS=('')
    elif [ -n "$folds" ]; then
        read -r -a RUNS <<< "$folds"
    else
        RUNS=()
        while [ -f "$(datafile train "$fold")" ]; do RUNS+=("$((fold++))"); done
    fi
    [ "${#RUNS[@]}" -gt 0 ] ||
        fail "$prep_dir has no training set: remove run_options.txt there and run stage 1"
}

# Compute the statistics of fold $1, if there are none yet.
compute_stats() {
    local stats train_data words
    stats=$(stats_file "$1") train_data=$(datafile train "$1")
    if [ ! -s "$stats" ]; then
        words=$("$PYTHON" "$ROOT/src/get_norm_stats.py" --data_train "$train_data" \
            --label_csv "$prep_dir/labels.csv" --num_mel_bins "$num_mel_bins" \
            --sample_rate "$sample_rate" --audio_length "$audio_length" --num_workers "$num_workers")
        echo "$words" > "$stats.$$" && mv "$stats.$$" "$stats"
    fi
    echo "$train_data: $(< "$stats")"
}

# Train fold $1 in exp_dir $2.
train_fold() {
    local data_eval stats mean std options
    stats=$(stats_file "$1") data_eval=$(datafile test "$1")
    options=(--data_train "$(datafile train "$1")" --data_val "$(datafile val "$1")"
        --label_csv "$prep_dir/labels.csv" --n_class "$(prepared_option n_class)"
        --dataset "$dataset" --loss "$loss" --metrics "$metrics" --audio_length "$audio_length"
        --freqm "$freqm" --timem "$timem")
    if [ "$own_stats" = True ]; then
        [ -s "$stats" ] || fail "there is no $stats: run stage 2"
        read -r _ mean _ std < "$stats"
        options+=(--dataset_mean "${dataset_mean:-$mean}" --dataset_std "${dataset_std:-$std}")
    fi
    [ ! -f "$data_eval" ] || options+=(--data_eval "$data_eval")
    train "$2" "${options[@]}"
}

# Print the best and the last epoch of a training without folds in exp_dir $1, and the test results.
summarise() {
    awk -F, -v metric="$metrics" 'NR == 1 || $1 > best { best = $1; epoch = NR }
        END { printf "epoch %d, the best: %s %.4f; ", epoch, metric, best
            printf "epoch %d, the last: %.4f\n", NR, $1 }' "$1/result.csv"
    [ ! -f "$1/eval_result.csv" ] || print_best_scores "$1"
    echo "results and models are in $1"
}

parse_options "$@"
use_recipe "$@"
choose_rate
[ -n "$data" ] || refuse '--data is needed: a folder with one folder per class, or a CSV'
: "${dataset:=$(dataset_name "$data")}" "${prep_dir:=$HERE/data/$(dataset_name "$data")}"
exp_dir=$(default_exp_dir "$exp_dir")
own_stats=True
[ -z "$dataset_mean" ] || [ -z "$dataset_std" ] || own_stats=False

in_stage 0 || in_stage 1 || read_prepared # report a mistake at once
setup_environment
check_device
if in_stage 1; then
    "$PYTHON" "$HERE/prep_own.py" --data "$data" --prep_dir "$prep_dir" \
        ${label_csv:+--label_csv "$label_csv"} --val_share "$val_share" --test_share "$test_share" \
        --n_folds "$n_folds" --seed "$split_seed"
    read_prepared
fi
if in_stage 2; then
    for fold in "${RUNS[@]}"; do
        [ "$own_stats" = False ] || compute_stats "$fold"
        if [ "$bal" = bal ]; then
            "$PYTHON" "$ROOT/egs/audioset/gen_weight_file.py" "$(datafile train "$fold")" \
                --label_csv "$prep_dir/labels.csv"
        fi
    done
fi
if in_stage 3; then
    # Both kinds of training write result.csv and report.html in exp_dir.
    if [ -n "${RUNS[0]}" ] && [ -e "$exp_dir/args.json" ]; then
        fail "$exp_dir holds a training without folds: give another --exp_dir"
    elif [ -z "${RUNS[0]}" ] && ls -d "$exp_dir"/fold[0-9]* > /dev/null 2>&1; then
        fail "$exp_dir holds a cross-validation: give another --exp_dir"
    fi
    for run in "$exp_dir"/fold[0-9]*; do
        fold=${run##*/fold}
        if [[ $fold =~ ^[0-9]+$ ]] && [ ! -f "$(datafile train "$fold")" ]; then
            fail "$run is of other data: those in $prep_dir have no such fold, but the summary \
would count it. Give another --exp_dir, or remove $run"
        fi
    done
    mark_to_begin_again "$exp_dir" "${RUNS[@]}"
    for fold in "${RUNS[@]}"; do
        echo "training in $exp_dir${fold:+/fold$fold}"
        train_fold "$fold" "$exp_dir${fold:+/fold$fold}"
    done
fi
if in_stage 4; then
    if [ -z "${RUNS[0]}" ]; then
        summarise "$exp_dir"
    else
        "$PYTHON" "$ROOT/src/summarise_folds.py" --exp_dir "$exp_dir"
    fi
fi
