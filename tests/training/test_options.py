"""Every option of every program with every kind of wrong value: one sentence, nothing left."""
import ast
import dataclasses
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiment
from audio import augmentation
from dataloader import AudioConf
from models import ASTModel, save_checkpoint
from parsers import parser_of
from training import losses, optimizer, options, schedule
from utilities.cli import boolean
from utilities.parallel import one_thread

CLIPS = 6
MODEL = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 3 '
         '--exp_dir deep/exp --num_mel_bins 32 --audio_length 32 --fstride 16 --tstride 16 '
         '--model_size tiny224 --imagenet_pretrain False --batch_size 4 --num_workers 0 '
         '--device cpu')
LOADING = '--num_workers 0 --device cpu --label_csv labels.csv'
# A right command line of every program. What it would write is in a folder that is not there yet.
ENTRY_POINTS = {
    'src/run.py': MODEL,
    'src/inference.py': f'clip0.wav --checkpoint model.pth --json deep/out.json {LOADING}',
    'src/get_norm_stats.py': '--data_train data.json --label_csv labels.csv --num_workers 0',
    'src/check_data.py': 'data.json --label_csv labels.csv',
    'src/report.py': '--exp_dir deep/exp',
    'src/summarise_folds.py': '--exp_dir deep/exp',
    'src/average_checkpoints.py': '--checkpoints model.pth model.pth --out deep/mean.pth',
    'src/export.py': '--checkpoint model.pth --format transformers --out deep/model '
                     '--label_csv labels.csv',
    'egs/audioset/download_models.py': 'audioset_10_10_0.4593',
    'egs/audioset/ensemble.py':
        f'--checkpoints model.pth --data_eval data.json --exp_dir deep/exp {LOADING}',
    'egs/audioset/gen_weight_file.py': 'data.json --label_csv labels.csv',
    'egs/audioset/prep_audioset.py':
        '--segments segments.csv --audio_dir audio --out deep/data.json --label_csv labels.csv',
    'egs/esc50/make_demo_data.py': '--out_dir deep/out --clips_per_fold 1',
    'egs/esc50/prep_esc50.py': '--data_dir folder --prep_dir deep/prep',
    'egs/own_dataset/prep_own.py': '--data classes --prep_dir deep/prep --val_share 0.3',
    'egs/speechcommands/prep_sc.py': '--data_dir folder --prep_dir deep/prep',
}
# Files that run before there is an environment, with any Python from 3.8 on.
BEFORE_ENVIRONMENT = (
    'egs/audioset/download_models.py', 'egs/environment.py', 'egs/recipe_options.py',
    'src/audio/__init__.py', 'src/models/__init__.py', 'src/models/published_data.py', 'src/training/options.py',
    'src/training/__init__.py', 'src/utilities/__init__.py', 'src/utilities/cli.py',
    'src/utilities/formatting.py')
SLOW_PACKAGES = {'torch', 'torchaudio', 'timm', 'scipy', 'sklearn', 'joblib', 'matplotlib', 'soundfile',
                 'av', 'huggingface_hub'}
# What the texts among the options stand for, by their names.
KINDS = {
    'input file': 'data_train data_val data_eval data_path datafile datafiles label_csv segments '
                  'config',
    'input folder': 'audio_dir compare data data_dir noise_dir',
    'recordings': 'audio audio_path',  # of which those that can be read are used: test_command.py
    'checkpoint': 'checkpoint checkpoints start',
    'output file': 'json csv embeddings out',
    'output folder': 'exp_dir prep_dir out_dir flac_dir shards plot html',
    'known name': 'device names model_size',
    'any name': 'dataset',
    'identifier': 'license',
}
MAX_MESSAGE = 7000  # characters; a message may quote 5000
UNUSABLE = ['missing', 'dangling', 'labels.csv/below', 'x' * 5000]
REFUSED = {
    'input file': [*UNUSABLE, 'folder', 'rubbish', '/proc/self/mem'],
    'input folder': [*UNUSABLE, 'rubbish'],
    'recordings': [],
    'checkpoint': ['missing.pth', 'dangling', 'labels.csv/below.pth', 'x' * 5000, 'folder',
                   'rubbish'],
    'output file': ['classes', 'labels.csv/below', 'x' * 5000 + '/x.pth', '/proc/nowhere/x.pth'],
    'output folder': ['labels.csv', 'labels.csv/below', 'x' * 5000, '/proc/nowhere'],
    'known name': ['nonsense', '-1', 'x' * 5000, 'cuda:128', 'cpu:1'],
    'any name': [],
    'identifier': ['MIT License', 'a/b', 'x' * 5000 + '/'],
    'number': ['some', 'nan', 'inf', '-inf', '1e400', '9' * 400, '9' * 5000, '0x10', 'True'],
    'one of a few': ['some', '-1', '0', 'nan', '1e30', 'x' * 5000],
}
# Numbers that may be right. The program works, or refuses them as it does the others.
EXTREME = ['-1', '0', '1', '0.5', '1e-300', '1e30', '1e300', '2147483647', '4294967296', '9' * 30]


@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    """Write a small checkpoint for all tests; return its path."""
    path = tmp_path_factory.mktemp('model') / 'model.pth'
    model = ASTModel(3, 16, 16, 32, 32, imagenet_pretrain=False, model_size='tiny224',
                     verbose=False)
    save_checkpoint(model, path, mean=-4.0, std=4.0, loss='BCE')
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, hub_offline, make_labels, make_datafile, make_tone, model_file):
    """Work in a folder with what the command lines name, and with files that are of no use.

    Afterwards, this process is as it was.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    for name in ('folder', 'torch_home', 'audio', 'classes/a', 'classes/b'):
        (tmp_path / name).mkdir(parents=True)
    make_labels(3)
    clips = [(make_tone(f'clip{i}.wav', seconds=0.4, seed=i), f'/m/{i % 3}') for i in range(CLIPS)]
    make_datafile(clips)
    for i in range(CLIPS):
        make_tone(f'classes/{"ab"[i % 2]}/{i}.wav', seconds=0.1)
    make_tone('audio/aaaaaaaaaaa.wav', seconds=0.1)
    (tmp_path / 'segments.csv').write_text('aaaaaaaaaaa, 0, 10, "/m/0"\n')
    (tmp_path / 'rubbish').write_bytes(bytes(range(256)) * 3)
    (tmp_path / 'dangling').symlink_to('nowhere')
    (tmp_path / 'torch_home' / 'audioset_10_10_0.4593.pth').touch()
    for path in (model_file, model_file.with_suffix('.json')):
        shutil.copy(path, tmp_path)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    with one_thread():
        yield tmp_path
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def entry_point(script):
    """Return the main() of a program, given its path from the root."""
    return importlib.import_module(Path(script).stem).main


@pytest.fixture
def start(monkeypatch, capsys):
    """Run a program in this process; return None if it succeeds, else the last thing it says."""
    def run(script, words):
        monkeypatch.setattr(sys, 'argv', [script, *words])
        try:
            entry_point(script)()
        except SystemExit as stop:
            seen = capsys.readouterr()
            assert 'Traceback' not in seen.err
            if isinstance(stop.code, str):
                return stop.code
            said = (seen.err or seen.out).rstrip('\n').split('\n')[-1]
            return said if stop.code == 2 else f'{said} {seen.out}' if stop.code else None
        finally:
            capsys.readouterr()
    return run


def kind_of(action):
    """Return the key of REFUSED that an option belongs to."""
    if action.choices or action.type is boolean:
        return 'one of a few'
    kinds = [kind for kind, names in KINDS.items() if action.dest in names.split()]
    if not kinds and action.type not in (None, Path):
        return 'number'
    assert kinds, f'say in KINDS what {action.dest} stands for'
    return kinds[0]


def command(script, action, value):
    """Return the words of a right command line, but for this value of this option."""
    words = ENTRY_POINTS[script].split()
    if not action.option_strings:
        known = [word for word in words if not word.startswith('-')]
        return [value, *words[words.index(known[0]) + 1:]]
    for name in action.option_strings:
        while name in words:
            del words[words.index(name):words.index(name) + 2]
    if action.dest == 'data_path':  # it takes the place of a positional
        words = words[1:]
    return [*words, f'{action.option_strings[-1]}={value}']


def snapshot(folder):
    """Return the files and folders in a folder, with their sizes."""
    return {path: path.lstat().st_size for path in folder.rglob('*')
            if '__pycache__' not in path.parts}


def complaint(message, action, value):
    """Return what is wrong with a message about a value of an option, or None."""
    if len(message) > MAX_MESSAGE:
        return 'is too long'
    if '\n' in message.strip():
        return 'has several lines'
    names = (*action.option_strings, action.dest, action.metavar or action.dest)
    paths = [path for path in (value, os.path.dirname(value)) if len(path) > 1]  # or its folder
    if not any(part in message for part in (*names, *(path[:500] for path in paths))):
        return 'names neither the option nor the value'
    return None


@pytest.mark.parametrize('script', ENTRY_POINTS)
def test_a_wrong_value_of_an_option_is_one_sentence_and_leaves_nothing(script, start, folder):
    wrong = []
    for action in parser_of(entry_point(script))._actions:
        if action.nargs == 0:  # a flag without a value, or --help
            continue
        for value in ['', ' ', *REFUSED[kind_of(action)]]:
            before = snapshot(folder)
            message = start(script, command(script, action, value))
            problem = complaint(message, action, value) if message else 'was accepted'
            left = [str(path.relative_to(folder)) for path in snapshot(folder)
                    if path not in before]
            if problem or left:
                said = (message or '')[:300]
                wrong.append(f'{action.dest} {value[:30]!r}: {problem} {left} {said!r}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('script', ENTRY_POINTS)
def test_an_extreme_number_works_or_is_one_sentence(script, start):
    wrong = []
    for action in parser_of(entry_point(script))._actions:
        if action.nargs == 0 or kind_of(action) != 'number':
            continue
        for value in EXTREME:
            shutil.rmtree('deep', ignore_errors=True)  # what the value before has made
            words = command(script, action, value)
            message = start(script, [*words, '--dry_run'] if script == 'src/run.py' else words)
            if message and (problem := complaint(message, action, value)):
                wrong.append(f'{action.dest} {value!r}: {problem} {message[:300]!r}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('options, reason', [
    ('--batch_size 1000000000', '--batch_size 1000000000.* GB, more than'),
    ('--batch_size 65536 --audio_length 360000 --tstride 16', '--batch_size 65536.* GB, more than'),
    ('--audio_length 1000000000', '--audio_length.*at most 360000'),
    ('--num_mel_bins 1000000', '--num_mel_bins.*at most 256'),
    ('--n_class 1000000000', '--n_class is 1000000000, but labels.csv lists 3'),
    ('--n_class 4 --data_val missing', '--n_class is 4'),
    ('--bal bal --data_val missing', '--bal bal .*data_weight.csv'),
    ('--freq_patchout 2', 'must leave some of the 2 rows and 2 columns'),
    ('--time_patchout 2', 'must leave some'),
    ('--freq_masks 2', '--freq_masks 2 needs --freqm'),
    ('--freqm 3 --time_masks 2', '--time_masks 2 needs --timem'),
    ('--shift_frames 33', '--shift_frames 33 is more than the 32 frames'),
    ('--snr_db 3', '--snr_db 3 needs --noise_dir'),
    ('--noise_dir audio --snr_db 5 3', '--snr_db: expected one number, or the lowest and .*5 3'),
    ('--noise_dir audio --snr_db 1 2 3', '--snr_db: expected one number, or the lowest'),
    ('--noise_dir audio --snr_db -101', '--snr_db: expected a number of at least -100'),
    ('--noise_dir folder', '--noise_dir: the folder folder holds no recordings'),
    ('--cache_embeddings True --freeze backbone --eval_windows 2', 'needs several: leave one'),
    ('--cache_embeddings True --freeze backbone --crop random', '--crop random would change.* give --crop first'),
    ('--fstride 33', '--fstride 33 .* 32 mel bins'), ('--tstride 33', '--tstride 33 .* 32 frames'),
    ('--fstride 1 --tstride 1 --audio_length 8000', '--fstride 1 and --tstride 1 .*135745 patches'),
    ('--num_workers 1000000', '--num_workers.*at most 256'),
    ('--seed 4294967296', '--seed.*at most 4294967295'),
    ('--dataset_mean 1e30', '--dataset_mean.*at most 100'),
    ('--dataset_std 1e-30', '--dataset_std.*above 0.001'),
    ('--lr 0 --exp_dir=', '--lr'), ('--exp_dir=', '--exp_dir')])
def test_sizes_that_no_training_has_are_refused_before_anything_is_read(start, folder, options,
                                                                        reason):
    message = start('src/run.py', [*MODEL.split(), *options.split()])
    assert re.search(reason, message or '') and '\n' not in message
    assert not (folder / 'deep').exists()


@pytest.mark.parametrize('script', sorted(ENTRY_POINTS))
@pytest.mark.parametrize('words', [['--help'], ['--bogus']])
def test_help_and_a_wrong_option_are_answered_before_slow_imports(root, script, words):
    done = subprocess.run([sys.executable, '-X', 'importtime', root / script, *words],
                          capture_output=True, text=True)
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.split('\n')
                if line.startswith('import time')}
    assert done.returncode == (0 if words == ['--help'] else 2) and 'argparse' in imported
    assert not imported & SLOW_PACKAGES


def test_what_runs_before_the_environment_needs_no_package_and_no_new_python(root):
    for name in BEFORE_ENVIRONMENT:
        code = (root / name).read_text(encoding='utf-8')
        tree = ast.parse(code, feature_version=(3, 8))
        # Python 3.8 would evaluate types such as list[str] and fail.
        has_types = any(getattr(node, 'annotation', None) or getattr(node, 'returns', None)
                        for node in ast.walk(tree))
        assert not has_types or 'from __future__ import annotations' in code, name
    recipe = root / 'egs' / 'esc50' / 'run_esc50.sh'
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', '-I', '-S', root / 'egs' / 'recipe_options.py', recipe,
         'exp_dir=  where',
         '--n_epochs', '25', '--', '--lr', '1e-4'], capture_output=True, text=True)
    expected = {'exp_dir=', 'n_epochs=25', '--n_epochs=25', 'lr=1e-4', '--lr=1e-4'}
    assert expected <= set(done.stdout.split('\n'))
    imported = [line.rpartition('|')[2].strip().replace('.', '/')
                for line in done.stderr.split('\n') if '|' in line]
    files = {f'src/{name}{end}' for name in imported for end in ('.py', '/__init__.py')}
    assert {name for name in files if (root / name).is_file()} <= set(BEFORE_ENVIRONMENT)


def test_the_constants_that_options_repeats_are_those_of_their_owners():
    assert options.MODELS == tuple(experiment.MODELS)
    assert options.LOSSES == tuple(losses.LOSSES)
    assert options.OPTIMIZERS == tuple(optimizer.OPTIMIZERS)
    assert options.SCHEDULES == tuple(schedule.DECAYS)
    assert options.CROPS == augmentation.CROPS
    ends = [name for name, kind in schedule.DECAYS.items() if issubclass(kind, schedule.DecayToEnd)]
    assert options.ENDS_AT_MIN_LR == tuple(ends)
    lowest, highest = augmentation.SNR_DB
    help_texts = {action.dest: action.help for action in options.make_parser()._actions}
    assert help_texts['snr_db'].endswith(f'without it {lowest:g} {highest:g}')


def test_every_setting_of_the_audio_is_an_option_of_its_name():
    # make_dataset would leave out a setting of another name without a word.
    known = {action.dest for action in options.make_parser()._actions}
    others = {'target_length', 'mode', 'mean', 'std', 'skip_norm'}  # make_dataset names them itself
    assert {field.name for field in dataclasses.fields(AudioConf)} - known == others


@pytest.mark.parametrize('old, new', options.OLD_NAMES.items())
def test_an_option_of_the_published_scripts_is_answered_with_todays_name(start, old, new):
    known = vars(options.make_parser().parse_args(MODEL.split()))
    assert new in known and old not in known
    assert f'--{old} is called --{new} here' in start('src/run.py', [f'--{old}', 'x'])


def test_every_script_with_options_is_walked_here(root):
    scripts = [path for part in ('src', 'egs') for path in (root / part).rglob('*.py')]
    with_parser = {str(path.relative_to(root)) for path in scripts
                   if '.parse_args(' in path.read_text() and path.name != 'cli.py'}
    # These are no programs: the recipes and run.py read their options with them.
    assert with_parser - {'egs/recipe_options.py', 'src/training/config.py'} == set(ENTRY_POINTS)


def test_every_program_ends_without_a_traceback_at_ctrl_c(root):
    for script in set(ENTRY_POINTS) - {'src/run.py'}:  # which training/interrupt.py ends
        assert '\n    run_program(main)\n' in (root / script).read_text(), script


def test_an_exp_dir_that_somebody_made_stays_where_a_run_is_refused(start, folder):
    (folder / 'deep' / 'exp').mkdir(parents=True)
    start('src/run.py', [*MODEL.split(), '--n_class', '4'])
    assert os.listdir(folder / 'deep') == ['exp']
