"""The ESC-50 recipe as its users start it: from any directory, under either name, under sbatch, with its options."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

# A model and a schedule that take seconds, on the clips of make_esc.
TINY = ['--model_size', 'tiny224', '--imagenet_pretrain', 'False', '--audioset_pretrain', 'False', '--fstride', '16',
        '--tstride', '16', '--num_mel_bins', '32', '--freqm', '8', '--audio_length', '32', '--timem', '8',
        '--n_epochs', '2', '--num_workers', '0', '--folds', '1 3']


# Options whose values show whether src/run.py gets them under their names.
ASKED = {'lr': 2e-4, 'batch_size': 5, 'loss': 'BCE', 'mixup': 0.5, 'seed': 3, 'dataset_mean': -4.5, 'n_epochs': 2,
         'tensorboard': True}


@pytest.fixture(scope='module')
def recipe(root):
    return root / 'egs' / 'esc50' / 'run_esc50.sh'


@pytest.fixture(scope='module')
def trained(recipe, terminal, write_esc, tmp_path_factory):
    """Start the recipe twice from a folder that is not its own: to train two folds, and to go on to the end.

    Returns (the folder, what the first start left in the results, the second start).
    """
    folder = tmp_path_factory.mktemp('elsewhere')
    write_esc(folder / "people's sounds")

    def start(name, *options):
        words = [str(recipe.with_name(name)), '--data_dir', "people's sounds", '--prep-dir', 'prepared data',
                 '--exp_dir=my results', *TINY, '--lr', '2e-4', '--batch-size=5', '--loss', 'BCE', '--mixup', '0.5',
                 '--seed', '3', '--dataset_mean', '-4.5', '--tensorboard', 'True', *options]
        done = subprocess.run(words, cwd=folder, env=terminal(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done
    start('run_esc.sh', '--stop_stage', '2')
    left = {path.name for path in (folder / 'my results').iterdir()}
    return folder, left, start('run_esc50.sh')


def test_the_recipe_trains_and_summarises_from_another_directory(trained):
    folder, left, _ = trained
    results = folder / 'my results'
    assert left == {'fold1', 'fold3'}
    assert {path.name for path in results.iterdir()} == {
        'fold1', 'fold3', 'result.csv', 'metrics.csv', 'best_result.csv', 'acc_fold.csv', 'curves.png', 'confusion_matrix.png',
        'class_accuracy.csv', 'report.html'}
    assert np.loadtxt(results / 'result.csv', delimiter=',').shape == (2, 10)
    assert np.loadtxt(results / 'acc_fold.csv').shape == (3,)


def test_the_same_command_trains_no_fold_again(trained):
    assert trained[2].stderr.count('is finished already') == 2


def test_the_recipe_passes_its_options_on_under_their_names(trained):
    fold = trained[0] / 'my results' / 'fold3'
    options = json.loads((fold / 'args.json').read_text())
    assert {name: options[name] for name in ASKED} == ASKED
    assert (fold / 'tensorboard').exists()


def test_the_defaults_are_the_published_settings(recipe, run_shell, shown_defaults, make_esc, tmp_path):
    done = run_shell([recipe, '--data_dir', make_esc(), '--prep_dir', 'prep', '--exp_dir', 'exp',
                      '--stop_stage', '2', '--device', 'cuda:99'])
    assert 'cuda:99' in done.stderr and not (tmp_path / 'exp').exists()
    published = {'n_epochs': '25', 'batch_size': '48', 'freqm': '24', 'timem': '96', 'mixup': '0',
                 'dataset_mean': '-6.6268077', 'dataset_std': '5.358466', 'audio_length': '512',
                 'lrscheduler_start': '5', 'lrscheduler_step': '1', 'lrscheduler_decay': '0.85',
                 'metrics': 'acc', 'loss': 'CE', 'imagenet_pretrain': 'True',
                 'audioset_pretrain': 'True', 'noise': 'False', 'warmup': 'False', 'wa': 'False',
                 'save_model': 'False'}
    shown = shown_defaults(recipe)
    assert {name: shown[name] for name in published} == published


def test_a_dry_run_says_what_training_would_do_and_leaves_nothing(recipe, run_shell, make_tone, make_datafile,
                                                                  tmp_path):
    words = [recipe, '--prep_dir', 'prep', *TINY, '--folds', '3', '--lr', '3e-4', '--dry-run']
    done = run_shell(words)
    assert done.returncode == 1 and 'esc_train_data_3.json' in done.stderr  # and nothing was downloaded
    assert not list(tmp_path.iterdir())
    (tmp_path / 'prep' / 'datafiles').mkdir(parents=True)
    for name in ('train', 'eval'):
        make_datafile([(make_tone('dog.wav', seconds=0.4), '/m/07rwj00')], f'prep/datafiles/esc_{name}_data_3.json')
    done = run_shell(words)
    assert done.returncode == 0, done.stderr
    assert '--lr 0.0003' in done.stderr and 'training 1, validation 1; 1 steps an epoch' in done.stderr
    exp_dir = recipe.parent / 'exp' / 'esc50-tiny224-f16-t16-scratch-b48-lr3e-4-seed0'
    assert done.stdout == f'recipe: published\nfold 3: {exp_dir}/fold3\n' and not exp_dir.exists()


def test_submitted_with_sbatch_the_recipe_finds_its_place(recipe, planned, run_shell, tmp_path):
    (tmp_path / 'spool').mkdir()
    script = shutil.copy(recipe, tmp_path / 'spool' / 'slurm_script')
    said = planned(script, cwd=recipe.parent, SLURM_SUBMIT_DIR=str(recipe.parent), SLURM_JOB_ID='1')
    assert f'{recipe.parent}/prep_esc50.py' in said and f'{recipe.parent}/exp/' in said
    elsewhere = run_shell([script], SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID='1')
    assert elsewhere.returncode and 'submit run_esc50.sh in egs/esc50' in elsewhere.stderr


@pytest.mark.parametrize('words, reason', [
    (['--bogus', '1'], 'unrecognized arguments: --bogus'),
    (['--HERE', '/tmp'], 'unrecognized arguments: --HERE'),
    (['--path;touch x', '1'], 'unrecognized arguments: --path;touch x'),
    (['--batch', '8'], 'unrecognized arguments: --batch'),
    (['--lr'], 'argument --lr/--learning_rate: expected one argument'),
    (['--lr', 'fast'], "expected a number above 0, got 'fast'"),
    (['5'], 'unrecognized arguments: 5'), (['--demo', 'maybe'], "expected True or False, got 'maybe'"),
    (['--stage', 'two'], "argument --stage: expected a whole number of at least 0, got 'two'"),
    (['--loss', 'MSE'], 'argument --loss: invalid choice'),
    (['--exp_dir', ''], 'argument --exp_dir: expected some text'),
    (['--data_train', 'a.json'], 'argument --data_train: the recipe sets it itself'),
    (['--config', 'old/args.json'], 'argument --config: a recipe has settings of its own'),
    (['--config=old/args.json'], 'start src/run.py --config old/args.json --exp_dir NEW'),
    (['--epoch', '3'], '--epoch is called --n_epochs here'),
    (['--imagenetpretrain=False'], '--imagenetpretrain is called --imagenet_pretrain here'),
    (['--base-exp-dir', 'exp'], '--base_exp_dir is called --exp_dir here'),
])
def test_a_wrong_option_is_one_sentence_before_anything_is_done(recipe, run_shell, tmp_path, words, reason):
    done = run_shell([recipe, '--prep_dir', 'prep', *words])
    [sentence] = done.stderr.splitlines()
    assert done.returncode == 2 and reason in sentence and sentence.startswith('run_esc50.sh: ')
    assert '--help lists the options' in sentence and not done.stdout and not list(tmp_path.iterdir())


def test_a_value_is_never_run_as_code(recipe, run_shell, tmp_path):
    run_shell([recipe, '--stop_stage', '0', '--exp_dir', '$(touch gotcha)`touch gotcha`;touch gotcha'])
    assert not (tmp_path / 'gotcha').exists()


@pytest.fixture
def begin_again(recipe, run_shell, tmp_path):
    """Start the recipe with --resume none where two folds are finished; return it and the marks.

    In place of src/run.py, a stand-in runs: commands of the shell, in which $exp is the exp_dir.
    """
    python = tmp_path / 'python'

    def start(commands, **environment):
        python.write_text(f'''#!/bin/bash
case $1 in
    */run.py) while [ "$1" != --exp_dir ]; do shift; done; exp=$2; {commands} ;;
    */recipe_options.py | -c) exec "{sys.executable}" "$@" ;;
esac
''')
        python.chmod(0o755)
        for fold in (1, 2):
            (tmp_path / 'exp' / f'fold{fold}').mkdir(parents=True, exist_ok=True)
            (tmp_path / 'exp' / f'fold{fold}' / 'args.json').touch()
        done = run_shell([recipe, '--exp_dir', 'exp', '--stage', '2', '--resume', 'none',
                          '--device', 'cpu'], AST_PYTHON=str(python), **environment)
        marks = sorted(str(mark.parent.name) for mark in tmp_path.glob('exp/*/begin_again'))
        return done, marks
    return start


def test_a_stopped_resume_none_begins_the_other_folds_again_at_the_next_start(begin_again):
    done, marks = begin_again('rm "$exp/begin_again"; exit 75')
    assert done.returncode == 75 and 'without --resume none continues' in done.stderr
    assert marks == ['fold2']
    done, marks = begin_again('exit 75')  # stopped before it began
    assert done.returncode == 75 and marks == ['fold1', 'fold2']


def test_a_resume_none_that_cannot_begin_keeps_all_old_folds(begin_again):
    done, marks = begin_again('exit 1')
    assert done.returncode == 1 and not marks
    done, marks = begin_again('rm "$exp/begin_again"; exit 1')  # it failed later
    assert done.returncode == 1 and marks == ['fold2']
    done, marks = begin_again('rm "$exp/begin_again" "$exp/args.json"; exit 1')
    assert done.returncode == 1 and marks == ['fold2']
    done, marks = begin_again('exit 1')  # the mark of the start before stays
    assert done.returncode == 1 and marks == ['fold2']


def test_a_job_that_is_queued_again_marks_nothing(begin_again):
    assert begin_again('exit 75', SLURM_RESTART_COUNT='1')[1] == []


def test_a_failed_stage_ends_the_recipe(recipe, run_shell, tmp_path):
    done = run_shell([recipe, '--data_dir', tmp_path / 'nowhere', '--prep_dir', tmp_path / 'prep', *TINY])
    assert done.returncode == 1 and 'does not exist' in done.stderr and 'Traceback' not in done.stderr


def test_the_demo_settings_give_way_to_the_users(recipe, planned):
    words = [recipe, '--demo', 'True', '--n_epochs', '1', '--folds', '1']  # test_signals.py trains such a demo
    assert f'make_demo_data.py --out_dir {recipe.parent}/data/demo/sounds' in planned(*words)
    said = planned(*words, '--data_dir', 'mine', '--prep_dir', 'prep', '--exp_dir', 'exp')
    assert 'make_demo_data.py' not in said and 'prep_esc50.py --prep_dir prep --data_dir mine\n' in said
    [training] = [line for line in said.splitlines() if '/src/run.py ' in line]
    for option in ('--n_epochs=1', '--model_size=tiny224', '--dataset=demo', '--exp_dir exp/fold1'):
        assert f'{option} ' in training


def test_where_a_recipe_is_started_does_not_matter(recipe, run_shell, tmp_path):
    words = '--stop_stage', '2', '--prep_dir', tmp_path / 'prep'
    done = run_shell(['egs/esc50/run_esc50.sh', *words, '--stage', '3'], cwd=recipe.parents[2], CDPATH='.:/tmp')
    assert done.returncode == 0, done.stderr
    for name in ('models', 'utilities', 'training'):
        (tmp_path / f'{name}.py').touch()
    done = run_shell([recipe, *words], CUDA_VISIBLE_DEVICES='99')
    assert done.returncode == 1 and 'CUDA_VISIBLE_DEVICES=99 asks for a GPU' in done.stderr


def test_a_gpu_that_cannot_be_used_stops_the_recipe_before_the_data_are_prepared(recipe, run_shell, make_esc, tmp_path):
    done = run_shell([recipe, '--data_dir', make_esc(), '--prep_dir', 'prep', '--exp_dir', 'exp', *TINY],
                     CUDA_VISIBLE_DEVICES='99')
    assert not (tmp_path / 'prep').exists() and not (tmp_path / 'exp').exists()
    assert done.returncode == 1 and 'CUDA_VISIBLE_DEVICES=99 asks for a GPU' in done.stderr


@pytest.mark.parametrize('words, looked_at', [([], True), (['--device', 'cuda'], True), (['--device', 'cpu'], False),
                                              (['--stop_stage', '1'], False)])
def test_a_gpu_is_only_looked_at_for_a_training_on_it(recipe, planned, words, looked_at):
    first, *others = planned(recipe, *words, CUDA_VISIBLE_DEVICES='99').splitlines()
    assert first.startswith('-m training.devices ') == looked_at
    assert 'prep_esc50.py' in (others[0] if looked_at else first)


def test_more_than_the_recordings_hold_is_refused(recipe, run_shell, tmp_path):
    done = run_shell([recipe, '--sample_rate', '44100'])
    assert done.returncode == 2 and 'a higher rate would add nothing' in done.stderr
    assert not any(tmp_path.iterdir())
