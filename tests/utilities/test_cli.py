"""How options are spelled and checked, and how mistakes are shown."""
import argparse
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from audio.fbank import SAMPLE_RATE, frame_size
from utilities.cli import (
    OptionParser,
    boolean,
    exit_on,
    mel_bins_type,
    number,
    setup_logging,
    whole,
    with_underscores,
)
from utilities.errors import DataError


@pytest.fixture
def parse():
    """Parse a command line, given as one text, with options of every kind."""
    parser = OptionParser(prog='tool')
    parser.add_argument('--data_train')
    parser.add_argument('--exp_dir', type=Path)
    parser.add_argument('--dataset_mean', type=number())
    parser.add_argument('--share', type=number(0, 1))
    parser.add_argument('--lr', '--learning_rate', type=number(above=0))
    parser.add_argument('-w', '--num_workers', type=whole(-1))
    parser.add_argument('--save_model', type=boolean)
    parser.add_argument('--dry_run', action='store_true')
    return lambda text: parser.parse_args(text.split())


@pytest.fixture
def refuse(parse, capsys):
    """Parse a command line that must be refused; returns what is written to standard error."""
    def run(text):
        with pytest.raises(SystemExit) as stop:
            parse(text)
        assert stop.value.code == 2
        return capsys.readouterr().err
    return run


@pytest.fixture
def root_logger():
    """The root logger, put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


class BrokenDataset(Dataset):
    """Three samples that cannot be read."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise DataError('the recording dog.wav is broken')


@pytest.mark.parametrize('text', [
    '--data-train a-b.json --num-workers 3', '--data_train a-b.json --num_workers 3',
    '--data-train=a-b.json --num_workers=3', '--data_train=a-b.json -w 3',
    '--data-train a-b.json -w3'])
def test_both_spellings_of_an_option_mean_the_same(parse, text):
    args = parse(text)
    assert (args.data_train, args.num_workers) == ('a-b.json', 3)


def test_an_alias_works_in_both_spellings(parse):
    assert parse('--learning-rate 0.1') == parse('--learning_rate 0.1') == parse('--lr 0.1')


@pytest.mark.parametrize('text', [
    '--data_tr a.json', '--data a.json', '--dry', '--num_workers_x 3', 'stray'])
def test_abbreviated_and_unknown_options_are_refused(refuse, text):
    message = refuse(text)
    assert text.split()[0] in message


@pytest.mark.parametrize('text, value', [
    ('-4.2', -4.2), ('-4e-1', -0.4), ('-4E+1', -40), ('-.5', -0.5), ('-0', 0)])
@pytest.mark.parametrize('form', ['--dataset-mean {}', '--dataset_mean={}', '--dataset_mean {}'])
def test_negative_numbers_are_values(parse, form, text, value):
    assert parse(f'{form.format(text)} --dry_run').dataset_mean == value


@pytest.mark.parametrize('text', ['-w -1', '-w=-1', '-w-1', '--num_workers -1', '--num-workers=-1'])
def test_a_negative_number_may_follow_a_short_option(parse, text):
    assert parse(text).num_workers == -1


@pytest.mark.parametrize('text, value', [
    ('True', True), ('true', True), ('FALSE', False), ('False', False)])
def test_booleans_are_words(parse, text, value):
    assert parse(f'--save_model {text}').save_model is value


@pytest.mark.parametrize('text', [
    '--save_model 1', '--save_model yes', '--save_model', '--num_workers -2', '--num_workers 1.5',
    '--num_workers many', '--lr 0', '--lr -1', '--lr nan', '--lr inf', '--lr -inf', '--share 1.1',
    '--share -0.1', '--dataset_mean low', '--dry_run 3'])
def test_a_value_out_of_range_is_refused_in_one_line_that_names_the_option(refuse, text):
    message = refuse(text)
    assert message.count('\n') == 1 and message.startswith('tool: ') and '--help' in message
    assert text.split()[0] in message or text.split()[1] in message


@pytest.mark.parametrize('kind, text, expected', [
    (whole(1), '0', 'a whole number of at least 1'),
    (whole(1, 9), '10', 'a whole number of at most 9'),
    (whole(1), '99999999999', 'a whole number of at most 2147483647'),
    (number(0, 1), '2', 'a number of at most 1'),
    (number(0, 1), '-1', 'a number of at least 0'), (number(above=0), '0', 'a number above 0'),
    (number(), 'x', "a number, got 'x'"), (boolean, 'x', 'True or False')])
def test_a_refused_value_is_quoted_with_what_was_expected(kind, text, expected):
    with pytest.raises(argparse.ArgumentTypeError, match=expected) as error:
        kind(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize('kind, text, value', [
    (whole(0), '0', 0), (number(0, 1), '1', 1), (number(0, 1), '0', 0),
    (number(above=0), '1e-9', 1e-9)])
def test_bounds_belong_to_the_range(kind, text, value):
    assert kind(text) == value


def test_help_lists_the_defaults(capsys):
    parser = OptionParser(prog='tool')
    parser.add_argument('--size', default=7, help='size of it')
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(['--help'])
    assert stop.value.code == 0
    assert 'size of it (default: 7)' in capsys.readouterr().out


def test_help_says_nothing_of_a_default_that_is_none(parse, capsys):
    with pytest.raises(SystemExit):
        parse('--help')
    assert '--data_train VALUE' in (shown := capsys.readouterr().out) and 'None' not in shown


def test_the_old_name_of_an_option_is_answered_with_the_new_one(capsys):
    parser = OptionParser(prog='tool', old_names={'epoch': 'n_epochs', 'w': 'n_epochs'})
    parser.add_argument('--n_epochs', required=True)
    parser.add_argument('--w')
    for line in (['--epoch', '3'], ['--epoch=3'], ['--n_epochs', '3', '--epoch', '3']):
        with pytest.raises(SystemExit):
            parser.parse_args(line)
        assert capsys.readouterr().err.startswith('tool: --epoch is called --n_epochs here (')
    assert parser.parse_args(['--n_epochs', 'epoch', '--w', '--epoch'[2:]]).w == 'epoch'


def test_a_mistake_ends_the_program_with_its_sentence():
    with pytest.raises(SystemExit) as stop, exit_on(DataError):
        raise DataError('a.json: no such file')
    assert stop.value.code == 'error: a.json: no such file'


def test_other_errors_pass_through():
    with pytest.raises(ZeroDivisionError), exit_on(DataError):
        print(1 / 0)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_mistake_found_by_a_dataloaders_worker_is_the_same_sentence(workers):
    batches = iter(DataLoader(BrokenDataset(), num_workers=workers))
    with pytest.raises(SystemExit) as stop, exit_on(DataError):
        next(batches)
    if workers:
        batches._shutdown_workers()  # the garbage collector would wait for them, five seconds
    assert stop.value.code == 'error: the recording dog.wav is broken'


def test_log_lines_go_to_standard_error_with_the_time(capsys, root_logger):
    setup_logging()
    root_logger.info('hello')
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.endswith(' hello\n') and captured.err[:8].count(':') == 2


@pytest.mark.parametrize('text', ['--data_train=', '--exp_dir=', '--exp_dir= '])
def test_an_empty_text_is_no_path(refuse, text):
    assert 'expected some text' in (message := refuse(text)) and text.rstrip('= ') in message


def test_a_path_is_a_path(parse):
    assert parse('--exp_dir a/b').exp_dir == Path('a/b')


def test_a_mistake_is_one_line_whatever_was_typed(parse, capsys):
    with pytest.raises(SystemExit):
        OptionParser(prog='tool').parse_args(['a\nb'])
    assert capsys.readouterr().err.count('\n') == 1


def test_standard_output_prints_names_that_its_encoding_does_not_have(monkeypatch, root_logger):
    written = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(written, encoding='ascii'))
    setup_logging()
    print('Élan \udcff.wav', flush=True)
    assert written.getvalue() == b'\\xc9lan \\udcff.wav\n'


def test_no_more_mel_bins_are_asked_for_than_the_fft_tells_apart():
    most = frame_size(SAMPLE_RATE).fft // 2
    assert mel_bins_type(str(most)) == most
    with pytest.raises(argparse.ArgumentTypeError):
        mel_bins_type(str(most + 1))


def test_what_follows_two_dashes_is_left_as_it_is():
    words = ['--a_b', '1', '--', '--4g-aRa.wav', '-5']
    assert with_underscores(['--a-b', *words[1:]]) == words


def interrupt_itself():
    """Stand in for a program that hears Ctrl-C."""
    raise KeyboardInterrupt


def test_ctrl_c_ends_a_program_by_the_signal_and_in_one_word():
    done = subprocess.run([sys.executable, '-c', 'from test_cli import interrupt_itself\n'
                           'from utilities.cli import run_program\n'
                           'run_program(interrupt_itself)'], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, 'stopped\n')
