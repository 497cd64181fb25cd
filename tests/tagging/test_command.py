"""The command line of inference.py: what it prints and writes, and what it refuses."""
import csv
import json
import os

import numpy as np
import pytest
import torch

import inference
import run
from audio.reading import load_waveform
from models import load_model
from small_tagger import CLASSES, FRAMES, LABELS, MEAN, MEL_BINS, STD, first_window
from tagging.command import find_audio


@pytest.fixture
def refuse(infer, capsys):
    """Run a command line that must end with exit code 1 or 2; return what standard error has."""
    def start(*words):
        with pytest.raises(SystemExit) as stop:
            infer(*words)
        seen = capsys.readouterr().err
        assert stop.value.code not in (0, None) and 'Traceback' not in seen
        return seen + (stop.value.code if isinstance(stop.value.code, str) else '')
    return start


def read_scores(path):
    """Return the scores of a CSV, (windows, classes)."""
    with open(path, newline='') as file:
        rows = list(csv.reader(file))[1:]
    return [[float(score) for score in row[3:-1]] for row in rows]


@pytest.mark.parametrize('option', ['--json', '--csv', '--plot', '--html', '--embeddings'])
def test_no_file_is_called_as_standard_output_is(refuse, option):
    said = refuse('a.wav', '--checkpoint', 'x.pth', option, '-')
    assert f'{option} wants the name of a file' in said


def test_the_first_windows_of_a_validation_set_give_the_accuracy_of_result_csv(
        infer, make_tone, make_labels, make_datafile):
    make_labels(CLASSES)
    clips = [(make_tone(f'{i}.wav', 400 + 30 * (i % 3), seconds=0.2 + 0.07 * i, seed=i),
              f'/m/{i % 3}') for i in range(12)]
    make_datafile(clips)
    run.main(f'--data_train data.json --data_val data.json --label_csv labels.csv '
             f'--n_class {CLASSES} --exp_dir exp --num_mel_bins {MEL_BINS} '
             f'--audio_length {FRAMES} --fstride 16 --tstride 16 --model_size tiny224 '
             f'--imagenet_pretrain False --n_epochs 2 --batch_size 4 --lr 1e-4 --num_workers 0 '
             f'--device cpu --amp off --metrics acc --loss CE --dataset_mean {MEAN} '
             f'--dataset_std {STD}'.split())
    infer(*(path for path, _ in clips), '--checkpoint', 'exp/models/best_audio_model.pth',
          '--window', 'first', '--csv', 'scores.csv', '--batch_size', '8')
    predicted = np.argmax(read_scores('scores.csv'), axis=1)
    accuracy = np.mean(predicted == [int(label[-1]) for _, label in clips])
    best = np.loadtxt('exp/result.csv', delimiter=',')[:, 0].max()
    assert f'{accuracy:.10g}' == f'{best:.10g}'


@pytest.fixture
def undescribed(make_checkpoint, make_labels):
    """Make a checkpoint as the published code does, without a description, trained with CE.

    Returns the options for it, and the name of the same checkpoint with a description.
    """
    source = make_checkpoint('described.pth', loss='CE')
    torch.save(torch.load(source, weights_only=True), 'best_audio_model.pth')
    return ['--checkpoint', 'best_audio_model.pth', '--fstride', 16, '--tstride', 16,
            '--num_mel_bins', MEL_BINS, '--audio_length', FRAMES,
            '--label_csv', make_labels(CLASSES)], source


def test_loss_and_statistics_of_a_checkpoint_without_description_are_options(
        infer, undescribed, make_tone):
    path, (options, source) = make_tone('a.wav', seconds=0.5), undescribed
    statistics = ['--dataset_mean', MEAN, '--dataset_std', STD]

    def scores(*words):
        infer(path, *words, '--csv', 'scores.csv')
        return read_scores('scores.csv')

    expected = scores('--checkpoint', source)
    assert scores(*options, *statistics, '--loss', 'CE') == expected
    assert sum(expected[0]) == pytest.approx(1, abs=1e-5)
    model, _ = load_model(source)
    with torch.inference_mode():
        sigmoids = model(first_window(load_waveform(path)))[0].sigmoid().tolist()
    assert scores(*options, *statistics)[0] == pytest.approx(sigmoids, abs=1e-5)


def test_one_line_says_what_was_assumed_of_a_checkpoint(undescribed, make_tone, capsys):
    path, (options, source) = make_tone('a.wav', seconds=0.5), undescribed

    def lines(*words):
        inference.main([*map(str, [path, *words]), '--device', 'cpu', '--amp', 'off',
                        '--num_workers', '0'])
        return [line for line in capsys.readouterr().err.splitlines() if 'assumed' in line]

    [line] = lines(*options)
    assert 'best_audio_model.pth' in line and 'mel' not in line
    for part in ('loss BCE (sigmoid scores) (--loss)', 'mean -4.2677393 (--dataset_mean)',
                 'std 4.5689974 (--dataset_std)'):
        assert part in line
    [line] = lines(*options, '--loss', 'CE', '--dataset_std', 3)
    assert 'assumed: mean -4.2677393 (--dataset_mean)' in line
    assert '--loss' not in line and '--dataset_std' not in line
    [line] = lines(*options, '--loss', 'CE', '--dataset_std', 3, '--dataset_mean', -6)
    assert 'assumed: model_size' in line
    assert lines('--checkpoint', source) == []


def test_a_folder_is_searched_for_audio_in_order_and_hidden_files_are_not(folder, caplog):
    caplog.set_level('INFO')
    names = ['b.WAV', 'a/z.flac', 'a/y.ogg', 'notes.txt', 'a/1.jpg', 'a/2.pdf', 'a/3.csv',
             '.hidden.wav', 'a/.cache/x.wav', 'a/c/d.mp3']
    for name in names:
        (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'in' / name).touch()
    found = ['in/a/c/d.mp3', 'in/a/y.ogg', 'in/a/z.flac', 'in/b.WAV']
    assert list(map(str, find_audio(['in']))) == found
    assert ('in: left out 4 files that are not audio by their suffix: 1.jpg, 2.pdf, 3.csv and 1 more'
            in caplog.text)
    first, *others = map(str, find_audio(['in/a/z.flac', 'in']))
    assert first == 'in/a/z.flac' and others == [path for path in found if path != first]


def test_the_command_line_counts_broken_files_at_its_end(refuse, broken, checkpoint):
    seen = refuse(*broken, '--checkpoint', checkpoint, '--json', 'out.json', '--csv', 'out.csv',
                  '--embeddings', 'out.npz')
    with open('out.json') as file:
        entries = {entry['path']: entry for entry in json.load(file)}
    assert '4 of 7 files could not be read' in seen and 'text.wav' in seen
    assert set(entries['gone.wav']) == {'path', 'error'} and entries['well.wav']['seconds'] == 1
    assert len(read_scores('out.csv')) == len(np.load('out.npz')['starts']) == 3 * 4


def test_either_spelling_of_the_command_line_works(infer, checkpoint, make_tone):
    make_tone('a.wav')
    printed = infer('a.wav', '--checkpoint', checkpoint)
    assert 'a.wav' in printed
    assert infer('--model_path', checkpoint, '--audio_path', 'a.wav') == printed
    line = ['--top_k', 5, 'a.wav', '--checkpoint', checkpoint, '--audio-path', 'a.wav']
    assert infer(*line) == printed


def test_the_text_shows_the_recording_and_then_its_timeline(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    lines = infer('a.wav', '--checkpoint', checkpoint, '--top_k', 2).splitlines()
    assert lines[0] == 'a.wav  0:01.0' and lines[1].split() == ['mean', 'max']
    times = [line.split()[0] for line in lines[4:8]]  # after the two classes
    assert times == ['0:00.0-0:00.3', '0:00.3-0:00.6', '0:00.6-0:01.0', '0:01.0-0:01.0']


def test_the_text_says_where_only_the_first_window_was_heard(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    lines = infer('a.wav', '--checkpoint', checkpoint, '--window', 'first').splitlines()
    assert lines[0] == 'a.wav  0:01.0, of which 0:00.0-0:00.3'
    assert len(lines) == 1 + CLASSES + 1


def test_json_and_csv_agree_to_the_last_digit(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    infer('a.wav', '--checkpoint', checkpoint, '--json', 'deep/er/out.json', '--csv', 'out.csv',
          '--top_k', 9)
    with open('deep/er/out.json') as file:
        [entry] = json.load(file)
    with open('out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    names = LABELS['names']
    assert list(rows[0]) == ['path', 'start', 'end', *names, 'incomplete_from']
    assert list(entry) == ['path', 'seconds', 'incomplete_from', 'windows', 'mean', 'max']
    assert rows[2]['start'] == '0.64'
    for row, window in zip(rows, entry['windows'], strict=True):
        assert row['path'] == 'a.wav'
        assert (float(row['start']), float(row['end'])) == (window['start'], window['end'])
        tags = window['tags']
        assert {tag['label']: tag['score'] for tag in tags} == {
            name: float(row[name]) for name in names}
        assert {tag['label']: tag['mid'] for tag in tags} == dict(
            zip(names, LABELS['mids'], strict=True))
        scores = [tag['score'] for tag in tags]
        assert scores == sorted(scores, reverse=True)
    highest = max(float(row[name]) for row in rows for name in names)
    assert entry['max'][0]['score'] == highest


def test_embeddings_are_those_that_the_model_gives(infer, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.5)
    infer('a.wav', '--checkpoint', checkpoint, '--embeddings', 'out.npz')
    saved, (model, _) = np.load('out.npz'), load_model(checkpoint)
    with torch.inference_mode():
        expected = model.forward_features(first_window(load_waveform(path)))[0].numpy()
    assert saved['embeddings'].shape == (2, 192)
    assert saved['embeddings'][0] == pytest.approx(expected, abs=1e-5)
    assert saved['paths'].tolist() == ['a.wav'] * 2 and saved['starts'].tolist() == [0, 0.32]


def test_a_plot_is_a_picture_of_one_file_or_a_folder_of_several(infer, refuse, checkpoint,
                                                                make_tone, folder):
    for name in ('a.wav', 'b.wav'):
        make_tone(name)
    (folder / 'in').mkdir()
    os.link('b.wav', 'in/b.wav')
    infer('a.wav', '--checkpoint', checkpoint, '--plot', 'one.png')
    infer('a.wav', 'b.wav', 'in', '--checkpoint', checkpoint, '--plot', 'pictures')
    pictures = list((folder / 'pictures').iterdir())
    assert {path.name for path in pictures} == {'a.wav.png', 'b.wav.png', 'b.wav-2.png'}
    assert all(path.read_bytes().startswith(b'\x89PNG')
               for path in (folder / 'one.png', *pictures))
    said = refuse('a.wav', 'b.wav', '--checkpoint', checkpoint, '--plot', 'two.png')
    assert 'names one picture, but there are 2 files' in said


MODEL = ['--checkpoint', 'model.pth']


@pytest.mark.parametrize('words, reason', [
    (['nowhere', '--checkpoint', 'nowhere.pth'], 'nowhere.pth does not exist'),
    (['empty', *MODEL], 'there are no audio files in empty'),
    ([*MODEL, 'a.wav'], 'before the options or after --audio_path'),
    (['a.wav', *MODEL, 'model.pth', '--embeddings', 'x.npz'], '--embeddings wants one checkpoint'),
    (['a.wav', *MODEL, '--window', 'first', '--hop_seconds', '1'], '--hop_seconds'),
    (['a.wav', *MODEL, '--hop_seconds', '0'], 'expected a number of at least 0.01'),
    (['a.wav', *MODEL, '--json', 'a.wav/out.json'], 'folder a.wav cannot be made'),
])
def test_a_mistake_ends_with_a_sentence(refuse, checkpoint, make_tone, folder, words, reason):
    make_tone('a.wav')
    (folder / 'empty').mkdir()
    assert reason in refuse(*words)


def test_dollar_signs_in_a_name_are_no_formula(infer, checkpoint, make_tone, folder):
    path = make_tone('take_$5_vs_$6.wav')
    infer(path, '--checkpoint', checkpoint, '--plot', 'a.png')
    assert (folder / 'a.png').exists()
