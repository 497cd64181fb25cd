"""Paths of any name reach the program whole; nothing in them is run."""
import json
import shutil
import stat
import sys

import pytest

import esc50
import inference
import own_dataset
import run
import speech_commands
from dataloader import AudiosetDataset
from models import ASTModel, load_model, save_checkpoint

NAMES = ["it's \"here\"", 'two  words ', '$(touch gotcha)', '`touch gotcha`', 'a; touch gotcha #',
         'line\nbreak', '*', 'ünïcødé 日本', '~', '${HOME}', 'back\\slash\\n', '%s {0} %(a)s',
         '& | < > !', 'a=b', 'True', '[x]']
WHOLE = ' '.join(name for name in NAMES)  # all at once, as one name of a folder
SMALL = ('--n_class 2 --num_mel_bins 16 --audio_length 32 --fstride 16 --tstride 16 '
         '--model_size tiny224 --imagenet_pretrain False --num_workers 0 --device cpu').split()

NOTE = 'import json, sys; open(sys.argv[1], "a").write(json.dumps(sys.argv[2:]) + "\\n")'
PYTHON = f'''#!/bin/sh
# Stands in for python in a recipe: it is its own environment, reads options, and notes every other
# command line.
case $1 in
    -c) exit 0 ;;
    */recipe_options.py) exec '{sys.executable}' "$@" ;;
    */environment.py) echo "$0" ;;
    *) exec '{sys.executable}' -c '{NOTE}' "$LOG" "$@" ;;
esac
'''


@pytest.fixture
def start(run_shell, root, tmp_path):
    """Start a recipe with a python that only notes its command lines; return their options."""
    bin_dir, log, cwd = tmp_path / 'bin', tmp_path / 'log', tmp_path / 'cwd'
    for folder in (bin_dir, cwd):
        folder.mkdir()
    (bin_dir / 'python').write_text(PYTHON)
    (bin_dir / 'python').chmod(stat.S_IRWXU)

    def go(recipe, *words):
        done = run_shell([root / 'egs' / recipe, *words], cwd=cwd, PATH=f'{bin_dir}:/usr/bin:/bin',
                         LOG=str(log), AST_PYTHON='')
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert calls and not any(cwd.iterdir()), done.stderr
        return list(map(options, calls))
    return go


def options(call):
    """The options in a command line, {--name: value}."""
    pairs = dict(zip(call, call[1:], strict=False))
    return pairs | dict(word.split('=', 1) for word in call if '=' in word)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('recipe, source', [('esc50/run_esc50.sh', '--data_dir'),
                                            ('speechcommands/run_sc.sh', '--data_dir')])
def test_a_recipe_hands_paths_on_whole(recipe, source, name, start):
    folds = ['--folds', '1'] if 'esc50' in recipe else []
    prepared, trained = start(recipe, source, f'{name}/data', '--prep_dir', f'{name}/prep',
                              f'--exp_dir={name}/exp', *folds, '--stop_stage', '2')
    assert (prepared['--prep_dir'], prepared[source]) == (f'{name}/prep', f'{name}/data')
    assert trained['--exp_dir'].removesuffix('/fold1') == f'{name}/exp'
    assert trained['--data_train'].startswith(f'{name}/prep/datafiles/')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with a folder in it that is called WHOLE; no part of a name may be run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / WHOLE).mkdir()
    yield tmp_path / WHOLE
    assert not list(tmp_path.rglob('gotcha'))


@pytest.fixture
def data(folder, make_tone, make_datafile, make_labels):
    """(datafile, label file) of a recording, all in the folder."""
    wav = make_tone(f'{WHOLE}/{WHOLE}.wav')
    datafile = make_datafile([(wav, '/m/0')], f'{WHOLE}/train.json')
    return datafile, make_labels(2, f'{WHOLE}/labels.csv')


def test_an_experiment_reads_its_data_and_knows_its_folder_under_any_name(folder, data, capfd):
    datafile, labels = map(str, data)
    run.main(['--data_train', datafile, '--data_val', datafile, '--label_csv', labels,
              '--exp_dir', str(folder / 'exp'), '--dry_run', *SMALL])
    assert str(folder / 'exp') in capfd.readouterr().err
    conf = {'num_mel_bins': 16, 'target_length': 32, 'mode': 'evaluation'}
    assert AudiosetDataset(datafile, conf, labels)[0][0].shape == (32, 16)


def make_model():
    """A tiny model with random weights."""
    return ASTModel(2, 16, 16, 16, 32, imagenet_pretrain=False, model_size='tiny224', verbose=False)


@pytest.mark.filterwarnings('ignore:Glyph')
def test_a_checkpoint_tags_recordings_and_writes_results_under_any_name(folder, data, capsys):
    wav = next(folder.glob('*.wav'))
    labels = {'mids': ['/m/0', '/m/1'], 'names': [WHOLE, '$(reboot)']}
    save_checkpoint(make_model(), folder / 'model.pth', labels=labels)
    inference.main([str(wav), '--checkpoint', str(folder / 'model.pth'),
                    '--json', str(folder / 'a.json'), '--csv', str(folder / 'a.csv'),
                    '--plot', str(folder / 'plots'), '--device', 'cpu', '--num_workers', '0'])
    assert json.loads((folder / 'a.json').read_text())[0]['path'] == str(wav)
    assert (folder / 'plots' / f'{wav.name}.png').exists() and str(wav) in capsys.readouterr().out
    assert load_model(folder / 'model.pth')[1]['labels']['names'] == [WHOLE, '$(reboot)']


def test_paths_that_begin_with_a_dash_are_values_after_an_equals_sign(folder, data, capfd):
    dash = folder.parent / '-dash'
    folder.rename(dash)
    save_checkpoint(make_model(), dash / '-m.pth')
    shutil.move(next(dash.glob('*.wav')), dash.parent / '-a.wav')
    inference.main(['--checkpoint=-dash/-m.pth', '--label_csv=-dash/labels.csv',
                    '--json=-dash/-a.json', '--device', 'cpu', '--num_workers', '0',
                    '--', '-a.wav'])
    assert (dash / '-a.json').exists()
    capfd.readouterr()
    with pytest.raises(SystemExit):
        inference.main(['--checkpoint', '-dash/-m.pth', '-a.wav'])
    said = capfd.readouterr().err
    assert '--checkpoint' in said and 'Traceback' not in said


def wavs_of(datafile):
    """The recordings that a datafile lists."""
    return [entry['wav'] for entry in json.loads(datafile.read_text())['data']]


@pytest.mark.parametrize('form', ['folder', 'zip'])
def test_esc50_is_prepared_under_any_name(form, folder, make_esc):
    source = make_esc(f'{WHOLE}/data')
    if form == 'zip':
        source = shutil.make_archive(folder / 'data', 'zip', source.parent, source.name)
    esc50.prepare(str(source), folder / 'out')
    wavs = wavs_of(folder / 'out' / 'datafiles' / 'esc_eval_data_1.json')
    assert len(wavs) == 2 and all(wav.startswith(str(folder)) for wav in wavs)


def test_speech_commands_are_prepared_under_any_name(folder):
    source = folder / 'data' / 'bed'
    source.mkdir(parents=True)
    for name in 'abc':
        (source / f'{name} {WHOLE}.wav').touch()
    (folder / 'data' / 'validation_list.txt').write_text('bed/b.wav\n')
    (folder / 'data' / 'testing_list.txt').write_text('bed/c.wav\n')
    for name in 'bc':
        (source / f'{name}.wav').touch()
    speech_commands.prepare(str(folder / 'data'), folder / 'out')
    wavs = wavs_of(folder / 'out' / 'datafiles' / 'speechcommand_train_data.json')
    assert wavs == [str(source / f'{name} {WHOLE}.wav') for name in 'abc']


def test_own_data_are_prepared_under_any_name(folder, make_tone):
    for i in range(6):
        label = f'{i % 2} {WHOLE}'[:100]
        (folder / 'data' / label).mkdir(parents=True, exist_ok=True)
        make_tone(f'{WHOLE}/data/{label}/{i}.wav', seconds=0.3)
    own_dataset.prepare(folder / 'data', folder / 'out')
    datafiles = folder / 'out' / 'datafiles'
    wavs = wavs_of(datafiles / 'train_data.json') + wavs_of(datafiles / 'val_data.json')
    assert sorted(wavs) == sorted(map(str, (folder / 'data').rglob('*.wav')))
