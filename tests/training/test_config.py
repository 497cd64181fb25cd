"""run.py --config: the settings of an earlier run come back, and the command line wins."""
import json
import subprocess
import sys

import pytest

import run
from training.config import PER_START_OPTIONS, expand_config
from training.options import make_parser

NEEDED = {'data_train': 'train.json', 'data_val': 'val.json', 'label_csv': 'labels.csv'}
NEW = ['--exp_dir', 'new']


@pytest.fixture
def write_config(tmp_path):
    """Write settings as args.json, with what run.py requires; return the path."""
    def write(**settings):
        path = tmp_path / 'args.json'
        path.write_text(json.dumps({**NEEDED, **settings}))
        return str(path)
    return write


def parse(*words):
    """Return the options of a command line, as run.py reads them."""
    parser = make_parser()
    return vars(parser.parse_args(expand_config(parser, words)))


def refused(capsys, *words):
    """Return the sentence with which run.py refuses a command line."""
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
    [sentence] = capsys.readouterr().err.splitlines()
    return sentence


def test_every_setting_of_a_run_comes_back(write_config):
    changed = ['--lr', '1e-5', '--dataset_mean', '-6.6268077', '--mixup', '0.5', '--bal', 'bal', '--wa', 'True',
               '--imagenet_pretrain', 'False', '--loss', 'CE', '--dataset', ' -my "data"\n', '--num_workers', '-1',
               '--data_eval', 'test.json', '--seed', '4294967295', '--clip_grad', '0.1']
    words = [f'--{name}={value}' for name, value in NEEDED.items()] + changed
    before = parse(*words, '--exp_dir', 'old')
    after = parse('--config', write_config(**before), *NEW)
    assert after == {**before, 'exp_dir': 'new'}


@pytest.mark.parametrize('before, after', [
    (['--lr', '3e-4'], []), ([], ['--lr', '3e-4']), ([], ['--learning-rate=3e-4']),
    (['--lr=1'], ['--lr=3e-4'])])
@pytest.mark.parametrize('form', [['--config={}'], ['--config', '{}']])
def test_the_command_line_wins_wherever_it_stands(write_config, before, after, form):
    path = write_config(lr=1e-5, mixup=0.5)
    options = parse(*before, *(word.format(path) for word in form), *after, *NEW)
    assert (options['lr'], options['mixup']) == (3e-4, 0.5)


def test_what_is_about_one_start_is_not_taken(write_config):
    path = write_config(resume='none', force=True, dry_run=True, config='other.json')
    options = parse('--config', path, *NEW)
    assert (options['resume'], options['force'], options['dry_run']) == ('auto', False, False)
    assert 'config' not in options
    assert set(PER_START_OPTIONS) - {'config'} <= set(options)


def test_the_folder_of_the_earlier_run_is_not_taken(write_config, capsys):
    said = refused(capsys, '--config', write_config(exp_dir='old'))
    assert 'the following arguments are required: --exp_dir' in said


def test_what_the_file_lacks_may_be_on_the_command_line_or_has_its_default(tmp_path):
    (tmp_path / 'args.json').write_text('{"data_train": "a.json", "data_eval": null}')
    words = ['--data_val=b.json', '--label_csv=c.csv', *NEW]
    options = parse('--config', str(tmp_path / 'args.json'), *words)
    assert options == parse('--data_train=a.json', *words)


@pytest.mark.parametrize('settings, reason', [
    ({'lr': 'fast'}, "argument --lr/--learning_rate: expected a number above 0, got 'fast'"),
    ({'lr': float('nan')}, 'expected a number above 0'), ({'n_epochs': 2.5}, 'expected a whole number'),
    ({'n_epochs': True}, 'expected a whole number'), ({'loss': 'MSE'}, 'invalid choice'),
    ({'warmup': 1}, 'expected True or False'), ({'dataset': ''}, 'expected some text'),
    ({'dataset': ['a', 'b']}, 'expected a number or a text for dataset'),
    ({'lr': {}}, 'expected a number or a text for lr'),
    ({'of_another_version': 0.75}, 'there is no option --of_another_version in this version'),
    ({'epochs': 3}, 'no option --epochs'), ({'': 3}, 'no option -- in'), ({'help': True}, '--help')])
def test_a_setting_that_cannot_be_used_is_a_sentence_that_names_the_file(write_config, capsys, settings, reason):
    path = write_config(**settings)
    said = refused(capsys, '--config', path, *NEW)
    assert reason in said and path in said


@pytest.mark.parametrize('content', [b'', b'{"lr": ', b'[1]', b'\xff', b'3', b'[' * 100_000])
def test_a_file_that_holds_no_settings_is_named(tmp_path, capsys, content):
    path = tmp_path / 'args.json'
    path.write_bytes(content)
    assert f'--config: cannot read {path}: ' in refused(capsys, '--config', str(path), *NEW)


def test_a_file_that_is_not_there_and_a_missing_name_are_said(tmp_path, capsys):
    assert 'cannot read nowhere.json: No such file' in refused(capsys, '--config', 'nowhere.json', *NEW)
    assert f'cannot read {tmp_path}: Is a directory' in refused(capsys, f'--config={tmp_path}', *NEW)
    assert 'argument --config: expected one argument' in refused(capsys, *NEW, '--config')


def test_a_mistake_in_the_file_is_answered_without_torch(root, write_config):
    path = write_config(lr='fast')
    done = subprocess.run([sys.executable, '-X', 'importtime', root / 'src' / 'run.py', '--config', path, *NEW],
                          capture_output=True, text=True)
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.split('\n')}
    assert done.returncode == 2 and 'argparse' in imported and not imported & {'torch', 'numpy'}


def test_the_new_run_keeps_the_settings_and_goes_on_with_or_without_the_file(
        tmp_path, monkeypatch, capsys, make_tone, make_labels, make_datafile):
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i), seconds=0.4), f'/m/{i}') for i in range(2)])
    tiny = ('--data_train data.json --data_val data.json --label_csv labels.csv --n_class 2 --num_mel_bins 16 '
            '--audio_length 32 --fstride 16 --tstride 16 --model_size tiny224 --imagenet_pretrain False '
            '--batch_size 2 --num_workers 0 --device cpu').split()
    run.main([*tiny, '--exp_dir', 'old', '--save_model', 'True'])
    run.main(['--config', 'old/args.json', *NEW])
    old, new = (json.loads((tmp_path / name / 'args.json').read_text()) for name in ('old', 'new'))
    assert new == {**old, 'exp_dir': 'new'}
    for name in ('result.csv', 'models/best_audio_model.pth'):
        assert (tmp_path / 'old' / name).read_bytes() == (tmp_path / 'new' / name).read_bytes()
    run.main(['--config', 'new/args.json', *NEW, '--n_epochs', '2'])
    run.main([*tiny, *NEW, '--save_model', 'True', '--n_epochs', '2'])
    assert 'new is finished already' in capsys.readouterr().err
