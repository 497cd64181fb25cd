"""Experiments from the command line: what they leave, what they repeat, and what they say about mistakes."""
import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

import experiment
import experiment_data
import run
import traintest
from dataloader import AudioConf
from models import read_state_dict
from training import config, folder, losses, optimizer, schedule, supervisor, trainer
from training.options import make_parser
from utilities.parallel import one_thread

CLIPS = 12
BASE = ('--data-train train.json --data-val val.json --label-csv labels.csv --n_class 3 --exp-dir exp --dataset demo '
        '--num_mel_bins 32 --audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False '
        '--n-epochs 2 --batch-size 4 --lr 1e-4 --num-workers 0 --device cpu')
CHANGED = '--lrscheduler_start 1 --dataset-mean -5.5 --dataset_std 3 --timem 7'
EVERYTHING = '--mixup 0.5 --freqm 8 --timem 8 --noise True --bal bal --warmup True'
PREDICTIONS = {'predictions/target.npy', 'predictions/cum_predictions.npy', 'predictions/predictions_1.npy',
               'predictions/predictions_2.npy'}
EXPERIMENT = PREDICTIONS | {'args.json', 'result.csv', 'metrics.csv', 'curves.png', 'finished', 'models/best_audio_model.pth',
                            'models/best_audio_model.json', 'environment.json', 'report.html'}


@pytest.fixture
def exp_dir(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Work in a folder of tiny recordings, datafiles and labels, good and bad; returns where experiments go."""
    monkeypatch.chdir(tmp_path)
    make_labels(3)
    clips = [(make_tone(f'{i}.wav', 400 * (1 + i % 3), seconds=0.4, seed=i), f'/m/{i % 3}') for i in range(CLIPS)]
    make_datafile(clips, 'train.json')
    make_datafile(clips[:9], 'val.json')
    make_datafile(clips[:3], 'good.json')
    make_datafile([*clips, (clips[0][0], '/m/0,/m/1')], 'several.json')
    make_datafile([*clips, (clips[0][0], '/m/99')], 'unknown.json')
    make_datafile([*clips[:9], *((clip, '') for clip, _ in clips[9:])], 'negatives.json')
    make_datafile([(clip, '') for clip, _ in clips[:3]], 'only_negatives.json')
    make_datafile([(tmp_path / 'gone.wav', '/m/0'), *clips], 'gone.json')
    (tmp_path / 'train_weight.csv').write_text('\n'.join(str(1 + i) for i in range(CLIPS)))
    return tmp_path / 'exp'


@pytest.fixture
def start(exp_dir):
    """Run an experiment with further options, given as one text, in this process."""
    def in_process(options=''):
        with one_thread():  # quicker for a model of this size, by far on a busy machine
            run.main([*BASE.split(), *options.split()])
    return in_process


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder for the experiments that several tests look at."""
    return tmp_path_factory.mktemp('kept')


@pytest.fixture
def start_once(start, exp_dir, kept):
    """Run an experiment in exp_dir, or copy what a test before has left with the same options."""
    def copy_or_run(options=''):
        copy = kept / (options or 'plain')
        if copy.exists():
            shutil.copytree(copy, exp_dir)
        else:
            start(options)
            shutil.copytree(exp_dir, copy)
    return copy_or_run


@pytest.fixture
def refuse(start, capsys):
    """Run an experiment that must stop with a mistake; returns the last line that the user sees."""
    def stopped(options):
        with pytest.raises(SystemExit) as stop:
            start(options)
        seen = capsys.readouterr().err
        assert stop.value.code not in (0, None) and 'Traceback' not in seen
        return stop.value.code if isinstance(stop.value.code, str) else seen.rstrip('\n').split('\n')[-1]
    return stopped


def files(folder):
    """The files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_an_experiment_leaves_its_results_its_best_model_and_nothing_else(start_once, exp_dir):
    start_once()
    assert files(exp_dir) == EXPERIMENT


def test_result_csv_has_the_published_columns(start_once, exp_dir):
    start_once(CHANGED)
    table = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
    assert table.shape == (2, 10)
    assert table[:, 9].tolist() == pytest.approx([1e-4, 5e-5])
    assert (table[0, 7], table[0, 8]) == (table[0, 0], table[0, 1])


def test_the_main_metric_is_the_one_asked_for(start, exp_dir):
    start('--metrics acc --loss CE --n_epochs 1')
    predictions, targets = (np.load(exp_dir / 'predictions' / f'{name}.npy') for name in ('predictions_1', 'target'))
    accuracy = np.mean(predictions.argmax(axis=1) == targets.argmax(axis=1))
    assert np.loadtxt(exp_dir / 'result.csv', delimiter=',')[0] == pytest.approx(accuracy)


def test_negatives_count_in_the_loss_and_not_in_the_accuracy(start, exp_dir):
    start('--data-train negatives.json --data-val negatives.json --data_eval negatives.json --metrics acc --mixup 0.5 '
          '--n_epochs 1')
    predictions, targets = (np.load(exp_dir / 'predictions' / f'{name}.npy') for name in ('predictions_1', 'target'))
    accuracy = np.mean(predictions[:9].argmax(axis=1) == targets[:9].argmax(axis=1))
    table = np.loadtxt(exp_dir / 'result.csv', delimiter=',')
    loss = -np.mean(np.log(np.where(targets > 0, predictions, 1 - predictions)))
    assert len(targets) == 12 and not targets[9:].any() and table[0] == pytest.approx(accuracy)
    assert table[6] == pytest.approx(loss, abs=1e-4)
    assert (exp_dir / 'class_accuracy.csv').read_text().count(',3,') == 3  # clips of each class
    assert '3 more clips are negatives' in (exp_dir / 'report.html').read_text()


def test_metrics_that_only_negatives_do_not_have_are_announced(start, exp_dir, capsys):
    start('--data-val only_negatives.json --n_epochs 1')
    said = capsys.readouterr().err
    assert 'only_negatives.json: no sample has a label' in said and 'AP, AUC and accuracy on it are nan' in said
    assert '3 of 3 classes without positives left out of the means' in said
    assert np.isnan(np.loadtxt(exp_dir / 'result.csv', delimiter=',')[:5]).all()


def test_the_best_model_is_described_beside_it(start_once, exp_dir):
    start_once(CHANGED)
    description = json.loads((exp_dir / 'models' / 'best_audio_model.json').read_text())
    assert description == {
        'model_size': 'tiny224', 'label_dim': 3, 'fstride': 16, 'tstride': 16, 'input_fdim': 32, 'input_tdim': 32,
        'dataset': 'demo', 'labels': {'mids': ['/m/0', '/m/1', '/m/2'], 'names': ['class 0', 'class 1', 'class 2']},
        'mean': -5.5, 'std': 3.0, 'loss': 'BCE', 'start': 'random'}


def test_the_options_are_kept(start_once, exp_dir):
    start_once(CHANGED)
    kept = json.loads((exp_dir / 'args.json').read_text())
    assert set(kept) == set(vars(make_parser().parse_args(BASE.split())))
    assert (kept['timem'], kept['lr'], kept['imagenet_pretrain'], kept['data_eval']) == (7, 1e-4, False, None)


def test_the_number_of_workers_changes_nothing(start, exp_dir):
    start(f'{EVERYTHING} --exp_dir exp/alone')
    start(f'{EVERYTHING} --exp_dir exp/workers --num_workers 2')
    alone, workers = (exp_dir / name / 'result.csv' for name in ('alone', 'workers'))
    assert alone.read_bytes() == workers.read_bytes()


def test_fbanks_in_batches_train_to_the_same_numbers(start, exp_dir):
    start(f'{EVERYTHING} --amp off --features cpu --exp_dir exp/samples')
    start(f'{EVERYTHING} --amp off --features gpu --exp_dir exp/batches --data_eval val.json')
    samples, batches = (np.loadtxt(exp_dir / name / 'result.csv', delimiter=',') for name in ('samples', 'batches'))
    np.testing.assert_allclose(batches[:, 5:7], samples[:, 5:7], rtol=1e-5)  # training and validation loss


def test_another_seed_is_another_run(start, exp_dir):
    start(f'{EVERYTHING} --exp_dir exp/first --n_epochs 1 --seed 1')
    start(f'{EVERYTHING} --exp_dir exp/second --n_epochs 1 --seed 2')
    first, second = (exp_dir / name / 'result.csv' for name in ('first', 'second'))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize('options', ['--mixup 1', '--freqm 16', '--timem 16', '--noise True', '--bal bal',
                                     '--warmup True', '--optim sgd', '--clip_grad 0.001', '--loss CE',
                                     '--dataset_mean -3', '--dataset-std=9', '--lr 2e-4', '-b 6'])
def test_an_option_of_training_changes_what_is_learned(start, start_once, exp_dir, options):
    start_once('--n_epochs 1')
    start(f'--n_epochs 1 --exp_dir changed {options}')
    heads = [read_state_dict(folder / 'models' / 'best_audio_model.pth')['mlp_head.1.weight']
             for folder in (exp_dir, exp_dir.with_name('changed'))]
    assert not torch.equal(*heads)


def test_data_eval_is_evaluated_with_the_best_model(start, exp_dir):
    start('--data-eval train.json --metrics acc')
    table, numbers = (np.loadtxt(exp_dir / name, delimiter=',') for name in ('result.csv', 'eval_result.csv'))
    best = table[table[:, 0].argmax()]
    assert numbers.shape == (4,)
    assert numbers[:2] == pytest.approx(best[:2])
    assert files(exp_dir) == EXPERIMENT | {
        'eval_result.csv', 'predictions/eval_predictions.npy', 'predictions/eval_targets.npy', 'confusion_matrix.png',
        'class_accuracy.csv'}


@pytest.mark.parametrize('classes, with_top5', [(3, False), (6, True)])
def test_single_label_runs_log_macro_f1_and_top_5_of_more_classes(start, make_labels, capsys, classes, with_top5):
    make_labels(classes)
    start(f'--n_epochs 1 --metrics acc --loss CE --n_class {classes}')
    assert 'macro F1 ' in (said := capsys.readouterr().err) and ('top-5 accuracy ' in said) == with_top5


def test_wa_leaves_the_averaged_model_and_its_numbers(start, exp_dir):
    start('--wa True --wa_end 2')
    assert np.loadtxt(exp_dir / 'wa_result.csv').shape == (5,)
    assert files(exp_dir) == EXPERIMENT | {'wa_result.csv', 'models/audio_model_wa.pth', 'models/audio_model_wa.json'}


def test_save_model_keeps_every_epoch(start, exp_dir):
    start('--save-model True')
    models = {f'models/audio_model.{epoch}.{suffix}' for epoch in (1, 2) for suffix in ('pth', 'json')}
    assert files(exp_dir) == EXPERIMENT | models | {'checkpoint.pth'}


def test_n_print_steps_sets_how_often_the_loss_is_reported(start, capsys):
    start('--n_epochs 1 --n_print_steps 2')
    reported = re.findall(r'step (\d+) of 3: loss', capsys.readouterr().err)
    assert reported == ['2', '3']


def test_validation_batches_are_twice_as_large(exp_dir):
    args = make_parser().parse_args([*BASE.split(), '--data_eval', 'val.json'])
    train, val, test = experiment_data.make_loaders(args, torch.device('cpu'))
    assert (train.batch_sampler.batch_size, val.batch_size, test.batch_size) == (4, 8, 8)


def test_a_dry_run_prints_sizes_and_leaves_nothing(start, exp_dir, capsys):
    start('--dry-run --data_eval val.json')
    printed = capsys.readouterr().err
    assert 'training 12, validation 9, test 9; 3 steps an epoch' in printed
    assert '2 x 2 = 4 patches' in printed and '--lr 0.0001' in printed
    assert not exp_dir.exists()


def test_a_dry_run_needs_no_weights(start, exp_dir, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'empty'))
    start('--dry_run --imagenet_pretrain True --audioset_pretrain True --model_size base384')
    assert not exp_dir.exists() and not (tmp_path / 'empty').exists()


def test_a_finished_experiment_is_not_run_again(start, start_once, exp_dir, capsys):
    start_once()
    before = {name: (exp_dir / name).stat().st_mtime_ns for name in files(exp_dir)}
    start('--num_workers 2 --n_print_steps 3')
    assert 'exp is finished already' in capsys.readouterr().err
    assert {name: (exp_dir / name).stat().st_mtime_ns for name in files(exp_dir)} == before


def test_a_run_that_was_broken_off_can_be_started_again(start, start_once, exp_dir):
    start_once()
    table = (exp_dir / 'result.csv').read_bytes()
    (exp_dir / 'finished').unlink()
    start()
    assert (exp_dir / 'result.csv').read_bytes() == table
    assert files(exp_dir) == EXPERIMENT


def test_other_settings_in_the_same_folder_are_named(start_once, refuse, exp_dir):
    start_once('--n_epochs 1')
    table = (exp_dir / 'result.csv').read_bytes()
    message = refuse('--n_epochs 1 --lr 2e-4 --timem 5')
    assert '--lr 0.0001 -> 0.0002' in message and '--timem 0 -> 5' in message and '--n_epochs' not in message
    assert (exp_dir / 'result.csv').read_bytes() == table


@pytest.mark.parametrize('options, reason', [
    ('--no_such_option 1', 'no_such_option'),
    ('--n_epoch 3', 'n_epoch'),
    ('--n_class 4', '--n_class is 4.*labels.csv lists 3 classes'),
    ('--loss CE --data-train several.json', 'one label a sample.*several.json'),
    ('--loss CE --data-val several.json', 'one label a sample.*several.json'),
    ('--loss CE --data-train negatives.json', r'negatives.json has 3 without \(negatives\): use --loss BCE'),
    ('--loss CE --data-val negatives.json', r'negatives.json has 3 without \(negatives\): use --loss BCE'),
    ('--metrics acc --data-val several.json', '--metrics acc needs one label.*several.json.*mAP'),
    ('--wa True --wa_start 2 --wa_end 3', 'wa_start <= wa_end <= n_epochs, got 2, 3, 2'),
    ('--wa True --wa_start 2 --wa_end 1', 'wa_start <= wa_end <= n_epochs, got 2, 1, 2'),
    ('--freqm 33', '--freqm 33 .*32 mel bins'),
    ('--timem 33', '--timem 33 .*32 frames'),
    ('--audio_length 15', 'audio_length'),
    ('--num_mel_bins 15', 'num_mel_bins'),
    ('--model resnet', "--model.*choose from '?ast"),
    ('--model_size huge', 'model_size must be one of tiny224'),
    ('--mixup 1.5', '--mixup.*at most 1'),
    ('--warmup maybe', '--warmup.*True or False'),
    ('--lr 0', '--lr.*above 0'),
    ('--dataset_std -1', '--dataset_std.*above 0'),
    ('--lrscheduler_decay 2', '--lrscheduler_decay'),
    ('--imagenet_pretrain False --audioset_pretrain True', 'imagenet_pretrain=True'),
    ('--device cuda:99', '--device cuda:99'),
    ('--data-train nowhere.json', 'datafile nowhere.json.*No such file'),
    ('--label-csv nowhere.csv', 'label file nowhere.csv.*No such file'),
    ('--data-val unknown.json', "entry 12.*'/m/99'"),
    ('--data-train val.json --bal bal', 'val_weight.csv.*sum over its labels'),
    ('--data-val gone.json -w 1', 'gone.wav'),
    ('--data-eval gone.json', 'gone.wav')])
def test_a_mistake_is_one_sentence_and_leaves_nothing(refuse, exp_dir, options, reason):
    message = refuse(options)
    assert re.search(reason, message) and '\n' not in message
    assert not exp_dir.exists()


def test_an_exp_dir_that_is_a_file_is_refused_in_one_sentence(refuse, tmp_path):
    message = refuse('--exp_dir labels.csv')
    assert 'labels.csv' in message and '\n' not in message
    assert (tmp_path / 'labels.csv').read_text().startswith('index,mid')


@pytest.mark.parametrize('batch_size, reason', [(4, r'step 2\b'), (12, '')])
def test_a_loss_that_is_no_number_stops_the_run_with_advice(refuse, exp_dir, batch_size, reason):
    message = refuse(f'--lr 1e30 --batch_size {batch_size} --amp off')
    assert re.search(reason, message) and 'finite' in message and 'lower --lr' in message
    assert not (exp_dir / 'finished').exists()


def in_subprocess(root, folder, options):
    """Run src/run.py as a user does, in that folder."""
    return subprocess.run([sys.executable, root / 'src' / 'run.py', *BASE.split(), *options.split()], cwd=folder,
                          capture_output=True, text=True)


def test_a_run_from_another_folder_exits_with_0(exp_dir, root, tmp_path):
    done = in_subprocess(root, tmp_path, '--n_epochs 1 --num_workers -1')
    assert done.returncode == 0, done.stderr
    assert 'best epoch 1' in done.stderr and 'result.csv' in files(exp_dir)


def test_bad_audio_in_training_is_replaced_and_reported(start, exp_dir, capsys):
    (exp_dir.parent / '3.wav').write_text('no audio')
    start('--data_val good.json --max_bad_audio 0.1 --n_print_steps 1')
    said = capsys.readouterr().err
    assert said.count('another sample takes its place') == 1 and '3.wav' in said
    assert said.count('1 samples replaced whose audio could not be read') == 2  # of both epochs


def test_too_much_bad_audio_stops_the_run_with_the_list_and_more_may_be_allowed(start, refuse, exp_dir, capsys):
    for i in (3, 7):
        (exp_dir.parent / f'{i}.wav').write_text('no audio')
    said = refuse('--data_val good.json --max_bad_audio 0.1 --batch_size 1')
    assert 'more than --max_bad_audio 0.1 of an epoch' in said and '/3.wav' in said and '/7.wav' in said
    capsys.readouterr()
    start('--data_val good.json --max_bad_audio 0.2 --batch_size 1')
    said = capsys.readouterr().err
    assert 'continuing in epoch 1' in said and said.count('2 samples replaced') == 2


def test_bad_audio_in_evaluation_is_an_error(refuse, exp_dir):
    (exp_dir.parent / '8.wav').write_text('no audio')
    assert '8.wav' in refuse('--max_bad_audio 1')


def test_a_worker_that_finds_a_broken_recording_ends_the_program_with_one_sentence(exp_dir, root, tmp_path):
    (tmp_path / '7.wav').write_text('no sound')
    done = in_subprocess(root, tmp_path, '--num_workers 2')
    last_line = done.stderr.rstrip('\n').split('\n')[-1]
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert last_line.startswith('error: ') and '7.wav' in last_line


def attributes(code, *owners):
    """The names X that a module or class asks for as owner.X, of owners such as args or self.settings."""
    return {node.attr for node in ast.walk(ast.parse(inspect.getsource(code)))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners}


def test_every_option_is_read_somewhere():
    read = attributes(experiment, 'args') | attributes(experiment_data, 'args')
    read |= attributes(folder, 'self.args') | attributes(config, 'found')
    read |= {'device'}  # option_checks.check_options returns it
    read |= {field.name for field in fields(AudioConf)}  # make_dataset reads all that are options
    for module in (traintest, trainer, optimizer, schedule, supervisor, losses):
        read |= attributes(module, 'settings', 's', 'self.settings')
    options = {action.dest for action in make_parser()._actions} - {'help'}
    assert options - read == set()


@pytest.mark.parametrize('name, value', [
    ('n_class', 527), ('model', 'ast'), ('dataset', 'audioset'), ('lr', 0.001), ('optim', 'adam'), ('batch_size', 12),
    ('n_epochs', 1), ('lr_patience', 0), ('n_print_steps', 100), ('fstride', 10), ('tstride', 10),
    ('imagenet_pretrain', True), ('audioset_pretrain', False), ('dataset_mean', -4.2677393), ('dataset_std', 4.5689974),
    ('audio_length', 1024), ('num_mel_bins', 128), ('lrscheduler_start', 2), ('lrscheduler_step', 1),
    ('lrscheduler_decay', 0.5), ('wa_start', 1), ('wa_end', 5), ('num_workers', -1), ('model_size', 'base384')])
def test_defaults_are_the_published_ones(name, value):
    needed = '--data_train a --data_val b --label_csv c --exp_dir d'.split()
    assert vars(make_parser().parse_args(needed))[name] == value
