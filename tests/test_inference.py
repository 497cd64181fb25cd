"""Tagging of audio files: windows, averages over checkpoints and time, every kind of output, and what goes wrong."""
import csv
import json
import os

import numpy as np
import pytest
import soundfile
import torch

import inference
import run
from audio.fbank import fbank, fit_frames, normalise
from audio.reading import AudioError, load_waveform
from inference import load_tagger, tag
from models import ASTModel, load_model, save_checkpoint
from tagging.command import find_audio
from tagging.spectrogram import Spectrogram
from tagging.windows import window_starts
from utilities.errors import DataError
from utilities.parallel import one_thread

FRAMES, MEL_BINS, CLASSES = 32, 32, 3  # windows of 0.32 s
MEAN, STD = -6.0, 3.0
LABELS = {'mids': ['/m/0', '/m/1', '/m/2'], 'names': ['dog', 'rain', 'sea, waves']}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, on one thread."""
    monkeypatch.chdir(tmp_path)
    with one_thread():
        yield tmp_path


@pytest.fixture
def make_checkpoint():
    """Write a checkpoint of random weights that differ from seed to seed; returns its name."""
    def make(name='model.pth', seed=0, classes=CLASSES, frames=FRAMES, **description):
        torch.manual_seed(seed)
        model = ASTModel(classes, 16, 16, MEL_BINS, frames, imagenet_pretrain=False, model_size='tiny224')
        torch.nn.init.normal_(model.mlp_head[1].weight, std=0.1)
        save_checkpoint(model, name, **{'labels': LABELS, 'mean': MEAN, 'std': STD, 'loss': 'BCE', **description})
        return name
    return make


@pytest.fixture
def checkpoint(make_checkpoint):
    return make_checkpoint()


@pytest.fixture
def tagger(checkpoint):
    return load_tagger(checkpoint, device='cpu', amp='off')


@pytest.fixture
def infer(capsys):
    """Run the command line; returns what it printed."""
    def start(*words):
        inference.main([*map(str, words), '--device', 'cpu', '--amp', 'off', '--num_workers', '0'])
        return capsys.readouterr().out
    return start


@pytest.fixture
def refuse(infer, capsys):
    """Run a command line that must end with exit code 1 or 2; returns what the user sees on standard error."""
    def start(*words):
        with pytest.raises(SystemExit) as stop:
            infer(*words)
        seen = capsys.readouterr().err
        assert stop.value.code not in (0, None) and 'Traceback' not in seen
        return seen + (stop.value.code if isinstance(stop.value.code, str) else '')
    return start


@pytest.mark.parametrize('option', ['--json', '--csv', '--plot', '--embeddings'])
def test_no_file_is_called_as_standard_output_is(refuse, option):
    assert f'{option} wants the name of a file' in refuse('a.wav', '--checkpoint', 'x.pth', option, '-')


def tag_here(tagger, files, **options):
    """Tag without worker processes."""
    return list(tag(tagger, files, num_workers=0, **options))


def logits_by_hand(checkpoint, waveform):
    """Logits (classes,) of the first window of a waveform."""
    model, description = load_model(checkpoint)
    inputs = normalise(fit_frames(fbank(waveform, MEL_BINS), FRAMES), description['mean'], description['std'])
    with torch.inference_mode():
        return model(inputs[None])[0]


def test_the_first_windows_of_a_validation_set_give_the_accuracy_of_result_csv(infer, make_tone, make_labels,
                                                                               make_datafile):
    make_labels(CLASSES)
    clips = [(make_tone(f'{i}.wav', 400 + 30 * (i % 3), seconds=0.2 + 0.07 * i, seed=i), f'/m/{i % 3}')
             for i in range(12)]
    make_datafile(clips)
    run.main(f'--data_train data.json --data_val data.json --label_csv labels.csv --n_class {CLASSES} --exp_dir exp '
             f'--num_mel_bins {MEL_BINS} --audio_length {FRAMES} --fstride 16 --tstride 16 --model_size tiny224 '
             f'--imagenet_pretrain False --n_epochs 2 --batch_size 4 --lr 1e-4 --num_workers 0 --device cpu --amp off '
             f'--metrics acc --loss CE --dataset_mean {MEAN} --dataset_std {STD}'.split())
    infer(*(path for path, _ in clips), '--checkpoint', 'exp/models/best_audio_model.pth', '--window', 'first',
          '--csv', 'scores.csv', '--batch_size', '8')
    with open('scores.csv', newline='') as file:
        rows = [[float(score) for score in row[3:-1]] for row in list(csv.reader(file))[1:]]
    right = np.mean(np.argmax(rows, axis=1) == [int(label[-1]) for _, label in clips])
    assert f'{right:.10g}' == f'{np.loadtxt("exp/result.csv", delimiter=",")[:, 0].max():.10g}'


def test_the_first_window_is_scored_as_by_hand(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=1)
    [result] = tag_here(tagger, path, window='first')
    expected = logits_by_hand(checkpoint, load_waveform(path)).sigmoid().numpy()
    assert result.scores == pytest.approx(expected[None], abs=1e-6)
    assert (result.seconds, result.starts.tolist(), result.ends.tolist()) == (1.0, [0.0], [0.32])


def test_a_short_clip_is_padded_as_in_training(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.1)
    [result] = tag_here(tagger, path)
    expected = logits_by_hand(checkpoint, load_waveform(path)).sigmoid().numpy()
    assert result.scores == pytest.approx(expected[None], abs=1e-6)
    assert result.ends.tolist() == [0.1]


@pytest.mark.parametrize('seconds, hop, starts', [
    (10, 10, [0]),
    (4, 10, [0]),
    (0.5, 10, [0]),  # less than a tenth, but the only one
    (30, 10, [0, 10, 20]),
    (25, 10, [0, 10, 20]),
    (20.99, 10, [0, 10]),  # a tenth of a window is the least
    (21, 10, [0, 10, 20]),
    (25, 5, [0, 5, 10, 15]),  # the fourth reaches the end
    (26, 5, [0, 5, 10, 15, 20]),
    (65, 30, [0, 30, 60]),
    (55, 30, [0, 30]),
    (60.5, 30, [0, 30]),
])
def test_windows_begin_every_hop_until_one_reaches_the_end(seconds, hop, starts):
    assert window_starts(seconds, 10, hop).tolist() == starts


def test_windows_of_a_whole_number_of_hops_are_not_one_too_many():
    for count in range(1, 400):
        assert len(window_starts(count * 10.24, 10.24, 10.24)) == count
        assert len(window_starts((count + 1) * 5.12, 10.24, 5.12)) == count


def test_every_window_is_scored_where_it_lies(tagger, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=1)
    [result] = tag_here(tagger, path, hop_seconds=0.2)
    waveform = load_waveform(path)
    expected = [logits_by_hand(checkpoint, waveform[int(16000 * start):]).sigmoid().numpy() for start in result.starts]
    assert result.starts == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    # A window does not lose the mean of exactly the same samples as by hand.
    assert result.scores == pytest.approx(np.array(expected), abs=2e-3)


def test_mean_is_weighted_by_the_audio_in_each_window_and_max_is_not(tagger, make_tone):
    [result] = tag_here(tagger, make_tone('a.wav', seconds=0.4))
    assert (result.ends - result.starts) == pytest.approx([0.32, 0.08])
    assert result.mean == pytest.approx(0.8 * result.scores[0] + 0.2 * result.scores[1], abs=1e-6)
    assert (result.max == np.maximum(*result.scores)).all()


def test_results_do_not_depend_on_batches_and_workers(tagger, make_tone):
    files = [make_tone(f'{i}.wav', 300 * (1 + i), seconds=0.5 + 0.2 * i) for i in range(3)]
    alone = tag_here(tagger, files, batch_size=64)
    spread = list(tag(tagger, files, num_workers=2, batch_size=2))
    assert [result.path for result in spread] == list(map(str, files))
    for one, other in zip(alone, spread):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_a_long_recording_is_read_a_window_at_a_time_and_only_scores_are_kept(tagger, make_tone, monkeypatch):
    path = make_tone('long.flac', seconds=60)
    longest = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, 'read', lambda self, frames=-1, **options: (
        longest.append(len(options['out'])) if 'out' in options else None) or read(self, frames, **options))
    [result] = tag_here(tagger, path, spectrograms=True)
    assert len(longest) == len(result.starts) == 188 and 0 < min(longest) and max(longest) < 4 * 16000
    assert result.spectrogram.shape[0] <= 1500 and np.isfinite(result.spectrogram).all()


def test_scores_of_several_checkpoints_are_averaged_each_with_its_own_statistics(make_checkpoint, make_tone):
    sources = [make_checkpoint('a.pth', seed=1), make_checkpoint('b.pth', seed=2, mean=-3.0, std=5.0)]
    path = make_tone('a.wav', seconds=0.5)
    each = [tag_here(load_tagger(source, 'cpu', 'off'), path)[0].scores for source in sources]
    [both] = tag_here(load_tagger(sources, 'cpu', 'off'), path)
    assert both.scores == pytest.approx((each[0] + each[1]) / 2, abs=1e-6)
    assert np.abs(each[0] - each[1]).max() > 0.01


def test_a_model_trained_with_ce_gives_shares_of_one(make_checkpoint, make_tone):
    path, source = make_tone('a.wav', seconds=0.3), make_checkpoint(loss='CE')
    [result] = tag_here(load_tagger(source, 'cpu', 'off'), path)
    assert result.scores[0] == pytest.approx(logits_by_hand(source, load_waveform(path)).softmax(0).numpy(), abs=1e-6)
    assert result.scores.sum() == pytest.approx(1, abs=1e-6)


@pytest.fixture
def undescribed(make_checkpoint, make_labels):
    """The options for a checkpoint as the published code writes it, of a model trained with CE; and the like one."""
    source = make_checkpoint('described.pth', loss='CE')
    torch.save(torch.load(source, weights_only=True), 'best_audio_model.pth')
    return ['--checkpoint', 'best_audio_model.pth', '--fstride', 16, '--tstride', 16, '--num_mel_bins', MEL_BINS,
            '--audio_length', FRAMES, '--label_csv', make_labels(CLASSES)], source


def scores_of(infer, *words):
    infer(*words, '--csv', 'scores.csv')
    with open('scores.csv', newline='') as file:
        return [[float(score) for score in row[3:-1]] for row in list(csv.reader(file))[1:]]


def test_loss_and_statistics_of_a_checkpoint_without_description_are_options(infer, undescribed, make_tone, capsys):
    path, (options, source) = make_tone('a.wav', seconds=0.5), undescribed
    given = ['--dataset_mean', MEAN, '--dataset_std', STD, '--loss', 'CE']
    expected = scores_of(infer, path, '--checkpoint', source)
    assert scores_of(infer, path, *options, *given) == expected
    assert sum(expected[0]) == pytest.approx(1, abs=1e-5)
    sigmoids = scores_of(infer, path, *options, *given[:4])
    waveform = load_waveform(path)
    assert sigmoids[0] == pytest.approx(logits_by_hand(source, waveform).sigmoid().tolist(), abs=1e-5)


def test_one_line_says_what_was_assumed_of_a_checkpoint(undescribed, make_tone, capsys):
    path, (options, source) = make_tone('a.wav', seconds=0.5), undescribed

    def lines(*words):
        inference.main([*map(str, [path, *words]), '--device', 'cpu', '--amp', 'off', '--num_workers', '0'])
        return [line for line in capsys.readouterr().err.splitlines() if 'assumed' in line]
    [line] = lines(*options)
    assert 'best_audio_model.pth' in line and 'mel' not in line
    for part in ('loss BCE (sigmoid scores) (--loss)', 'mean -4.2677393 (--dataset_mean)',
                 'std 4.5689974 (--dataset_std)'):
        assert part in line
    [line] = lines(*options, '--loss', 'CE', '--dataset_std', 3)
    assert 'assumed: mean -4.2677393 (--dataset_mean)' in line and '--loss' not in line and '--dataset_std' not in line
    assert lines(*options, '--loss', 'CE', '--dataset_std', 3, '--dataset_mean', -6) == []
    assert lines('--checkpoint', source) == []


def test_a_given_loss_goes_before_the_checkpoints_own(make_checkpoint, make_tone):
    path, sources = make_tone('a.wav', seconds=0.3), [make_checkpoint(f'{loss}.pth', loss=loss) for loss in ('BCE', 'CE')]
    for loss, same in (('BCE', 0), ('CE', 1)):
        given, other = (tag_here(load_tagger(source, 'cpu', 'off', loss=loss), path)[0].scores for source in sources)
        own = tag_here(load_tagger(sources[same], 'cpu', 'off'), path)[0].scores
        assert (given == own).all() and (other == own).all()


def test_names_of_classes_that_were_assumed_are_said(make_checkpoint, caplog):
    load_tagger(make_checkpoint(classes=35, labels={}), 'cpu')
    assert [record.getMessage() for record in caplog.records] == [
        'model.pth does not name its 35 classes; assumed: those of speechcommands (--label_csv)']
    caplog.clear()
    load_tagger(make_checkpoint(classes=35, labels={}, dataset='speechcommands'), 'cpu')
    assert not caplog.records


def test_a_checkpoint_in_safetensors_gives_the_same_scores(make_checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.3)
    each = [tag_here(load_tagger(make_checkpoint(name), 'cpu', 'off'), path)[0].scores
            for name in ('a.pth', 'b.safetensors')]
    assert (each[0] == each[1]).all()


def test_given_statistics_go_before_the_checkpoints_own(make_checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.3)
    [given] = tag_here(load_tagger(make_checkpoint('a.pth', mean=0.0, std=1.0), 'cpu', 'off', mean=MEAN, std=STD), path)
    [own] = tag_here(load_tagger(make_checkpoint('b.pth'), 'cpu', 'off'), path)
    assert (given.scores == own.scores).all()


@pytest.mark.parametrize('other, reason', [
    ({'frames': 48}, 'a.pth wants 32 frames x 32 mel bins, but b.pth 48 x 32'),
    ({'labels': {**LABELS, 'names': ['dog', 'cat', 'hen']}}, 'b.pth has other classes than a.pth'),
])
def test_checkpoints_that_do_not_go_together_are_refused(make_checkpoint, other, reason):
    with pytest.raises(DataError, match=reason):
        load_tagger([make_checkpoint('a.pth'), make_checkpoint('b.pth', **other)], 'cpu')


@pytest.mark.parametrize('classes, description, name', [
    (527, {}, 'Speech'), (35, {}, 'backward'), (35, {'dataset': 'speechcommands'}, 'backward')])
def test_a_checkpoint_of_a_known_dataset_needs_no_label_file(make_checkpoint, classes, description, name):
    source = make_checkpoint(classes=classes, labels={}, **description)
    assert load_tagger(source, 'cpu').labels.names[0] == name


@pytest.mark.parametrize('classes, description', [(CLASSES, {}), (35, {'dataset': 'birds'}),
                                                  (10, {'dataset': 'audioset'})])
def test_a_checkpoint_without_names_asks_for_a_label_file(make_checkpoint, classes, description):
    with pytest.raises(DataError, match=f'does not name its {classes} classes.*--label_csv'):
        load_tagger(make_checkpoint(classes=classes, labels={}, **description), 'cpu')


def test_a_label_file_gives_the_names(checkpoint, make_labels):
    names = load_tagger(checkpoint, 'cpu', label_csv=make_labels(CLASSES)).labels.names
    assert names == ('class 0', 'class 1', 'class 2')


def test_a_label_file_of_other_classes_or_another_order_is_refused(checkpoint, make_labels, folder):
    with pytest.raises(DataError, match='model.pth has 3 classes, but --label_csv lists 2'):
        load_tagger(checkpoint, 'cpu', label_csv=make_labels(2))
    (folder / 'other.csv').write_text('index,mid,display_name\n0,/m/1,rain\n1,/m/0,dog\n2,/m/2,sea\n')
    with pytest.raises(DataError, match='another order'):
        load_tagger(checkpoint, 'cpu', label_csv='other.csv')


@pytest.mark.parametrize('name, rate, channels', [('a.wav', 44100, 2), ('a.flac', 48000, 1), ('a.ogg', 22050, 2),
                                                  ('a.mp3', 44100, 1), ('a.wav', 8000, 3)])
def test_every_format_rate_and_number_of_channels_is_tagged(tagger, make_tone, name, rate, channels):
    [result] = tag_here(tagger, make_tone(name, seconds=1, rate=rate, channels=channels))
    assert result.error is None and len(result.starts) == 4 and result.seconds == pytest.approx(1, abs=0.01)


def test_a_folder_is_searched_for_audio_in_order_and_hidden_files_are_not(folder, caplog):
    caplog.set_level('INFO')
    names = ['b.WAV', 'a/z.flac', 'a/y.ogg', 'notes.txt', 'a/1.jpg', 'a/2.pdf', 'a/3.csv', '.hidden.wav', 'a/.cache/x.wav', 'a/c/d.mp3']
    for name in names:
        (folder / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / 'in' / name).touch()
    found = ['in/a/c/d.mp3', 'in/a/y.ogg', 'in/a/z.flac', 'in/b.WAV']
    assert list(map(str, find_audio(['in']))) == found
    assert 'in: left out 4 files that are not audio by their suffix: 1.jpg, 2.pdf, 3.csv, ...' in caplog.text
    assert list(map(str, find_audio(['in/a/z.flac', 'in']))) == ['in/a/z.flac', *(f for f in found if 'z' not in f)]


@pytest.fixture
def broken(folder, make_tone):
    """A folder with three good recordings and some that are broken in their own ways, among them one far inside."""
    soundfile.write('nan.wav', np.r_[np.zeros(16000), np.full(16000, np.nan)], 16000, subtype='FLOAT')
    soundfile.write('empty.wav', np.zeros(0), 16000)
    (folder / 'text.wav').write_text('not audio')
    make_tone('length.flac')
    flac = bytearray((folder / 'length.flac').read_bytes())
    flac[21], flac[22:26] = flac[21] & 0xF0, bytes(4)  # as `ffmpeg -f flac -` leaves it
    (folder / 'length.flac').write_bytes(flac)
    make_tone('good.wav')
    make_tone('well.wav')
    return ['empty.wav', 'good.wav', 'gone.wav', 'length.flac', 'nan.wav', 'text.wav', 'well.wav']


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_files_are_reported_and_the_rest_is_tagged(tagger, broken, workers):
    results = list(tag(tagger, broken, num_workers=workers, batch_size=2))
    errors = {result.path: result.error for result in results if result.error}
    assert [result.path for result in results] == broken
    assert set(errors) == set(broken) - {'good.wav', 'length.flac', 'well.wav'}
    assert 'holds no samples' in errors['empty.wav'] and 'does not exist' in errors['gone.wav']
    assert 'NaN' in errors['nan.wav'] and 'cannot read' in errors['text.wav']
    assert all(len(result.starts) == (0 if result.error else 4) for result in results)
    with pytest.raises(AudioError, match='gone.wav does not exist'):
        results[[result.path for result in results].index('gone.wav')].mean


def test_the_command_line_counts_broken_files_at_its_end(refuse, broken, checkpoint):
    seen = refuse(*broken, '--checkpoint', checkpoint, '--json', 'out.json', '--csv', 'out.csv',
                  '--embeddings', 'out.npz')
    entries = {entry['path']: entry for entry in json.loads(open('out.json').read())}
    assert '4 of 7 files could not be read' in seen and 'text.wav' in seen
    assert set(entries['gone.wav']) == {'path', 'error'} and entries['well.wav']['seconds'] == 1
    assert len(open('out.csv').readlines()) == 1 + 3 * 4 and len(np.load('out.npz')['starts']) == 3 * 4


def test_either_spelling_of_the_command_line_works(infer, checkpoint, make_tone):
    make_tone('a.wav')
    printed = infer('a.wav', '--checkpoint', checkpoint)
    assert 'a.wav' in printed
    assert infer('--model_path', checkpoint, '--audio_path', 'a.wav') == printed
    assert infer('--top_k', 5, 'a.wav', '--checkpoint', checkpoint, '--audio-path', 'a.wav') == printed


def test_the_text_shows_the_recording_and_then_its_timeline(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    lines = infer('a.wav', '--checkpoint', checkpoint, '--top_k', 2).splitlines()
    assert lines[0] == 'a.wav  0:01.0' and lines[1].split() == ['mean', 'max'] and len(lines[2:4]) == 2
    times = [line.split()[0] for line in lines[4:8]]
    assert times == ['0:00.0-0:00.3', '0:00.3-0:00.6', '0:00.6-0:01.0', '0:01.0-0:01.0']


def test_the_text_says_where_only_the_first_window_was_heard(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    lines = infer('a.wav', '--checkpoint', checkpoint, '--window', 'first').splitlines()
    assert lines[0] == 'a.wav  0:01.0, of which 0:00.0-0:00.3' and len(lines) == 1 + CLASSES + 1


def test_json_and_csv_agree_to_the_last_digit(infer, checkpoint, make_tone):
    make_tone('a.wav', seconds=1)
    infer('a.wav', '--checkpoint', checkpoint, '--json', 'deep/er/out.json', '--csv', 'out.csv', '--top_k', 9)
    [entry] = json.loads(open('deep/er/out.json').read())
    with open('out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ['path', 'start', 'end', *LABELS['names'], 'incomplete_from']
    assert list(entry) == ['path', 'seconds', 'incomplete_from', 'windows', 'mean', 'max']
    assert [(row['path'], float(row['start']), float(row['end'])) for row in rows] == [
        ('a.wav', window['start'], window['end']) for window in entry['windows']] and rows[2]['start'] == '0.64'
    for row, window in zip(rows, entry['windows']):
        assert {tag['label']: tag['score'] for tag in window['tags']} == {n: float(row[n]) for n in LABELS['names']}
        assert {tag['label']: tag['mid'] for tag in window['tags']} == dict(zip(LABELS['names'], LABELS['mids']))
        scores = [tag['score'] for tag in window['tags']]
        assert scores == sorted(scores, reverse=True)
    assert entry['max'][0]['score'] == max(float(row[n]) for row in rows for n in LABELS['names'])


def test_embeddings_are_those_that_the_model_gives(infer, checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.5)
    infer('a.wav', '--checkpoint', checkpoint, '--embeddings', 'out.npz')
    saved, (model, _) = np.load('out.npz'), load_model(checkpoint)
    inputs = normalise(fit_frames(fbank(load_waveform(path), MEL_BINS), FRAMES), MEAN, STD)
    with torch.inference_mode():
        expected = model.forward_features(inputs[None])[0].numpy()
    assert saved['embeddings'].shape == (2, 192) and saved['embeddings'][0] == pytest.approx(expected, abs=1e-5)
    assert saved['paths'].tolist() == ['a.wav'] * 2 and saved['starts'].tolist() == [0, 0.32]


def test_a_plot_is_a_picture_of_one_file_or_a_folder_of_several(infer, refuse, checkpoint, make_tone, folder):
    for name in ('a.wav', 'b.wav'):
        make_tone(name)
    (folder / 'in').mkdir()
    os.link('b.wav', 'in/b.wav')
    infer('a.wav', '--checkpoint', checkpoint, '--plot', 'one.png')
    infer('a.wav', 'b.wav', 'in', '--checkpoint', checkpoint, '--plot', 'pictures')
    assert {path.name for path in (folder / 'pictures').iterdir()} == {'a.wav.png', 'b.wav.png', 'b.wav-2.png'}
    pictures = [folder / 'one.png', *(folder / 'pictures').iterdir()]
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in pictures)
    assert 'names one picture, but there are 2 files' in refuse('a.wav', 'b.wav', '--checkpoint', checkpoint, '--plot',
                                                               'two.png')


def test_a_spectrogram_keeps_its_peaks_however_much_it_is_pooled():
    whole, pooled = Spectrogram(10, 4), Spectrogram(100, 4)
    frames = np.random.default_rng(0).standard_normal((998, 4)).astype(np.float32)
    whole.add(0, frames)
    for start in (0, 5, 90):
        pooled.add(start, frames[:500])
    assert (whole.columns(10) == frames).all()
    columns = pooled.columns(100)
    assert columns.shape == (-(-9998 // 7), 4) and (columns[0] == frames[:7].max(axis=0)).all()
    assert np.isnan(columns[200:1200]).all() and np.isfinite(columns[:140]).all()


@pytest.mark.parametrize('words, reason', [
    (['nowhere', '--checkpoint', 'nowhere.pth'], 'nowhere.pth does not exist'),
    (['empty', '--checkpoint', 'model.pth'], 'there are no audio files in empty'),
    (['--checkpoint', 'model.pth', 'a.wav'], 'before the options or after --audio_path'),
    (['a.wav', '--checkpoint', 'model.pth', 'model.pth', '--embeddings', 'x.npz'], '--embeddings wants one checkpoint'),
    (['a.wav', '--checkpoint', 'model.pth', '--window', 'first', '--hop_seconds', '1'], '--hop_seconds'),
    (['a.wav', '--checkpoint', 'model.pth', '--hop_seconds', '0'], 'expected a number of at least 0.01'),
    (['a.wav', '--checkpoint', 'model.pth', '--json', 'a.wav/out.json'], 'folder a.wav cannot be made'),
])
def test_a_mistake_ends_with_a_sentence(refuse, checkpoint, make_tone, folder, words, reason):
    make_tone('a.wav')
    (folder / 'empty').mkdir()
    assert reason in refuse(*words)


def test_dollar_signs_in_a_name_are_no_formula(make_checkpoint, make_tone, tmp_path):
    path = make_tone('take_$5_vs_$6.wav')
    inference.main([str(path), '--checkpoint', str(make_checkpoint()), '--plot', str(tmp_path / 'a.png'), '--device',
                    'cpu', '--num_workers', '0'])
    assert (tmp_path / 'a.png').exists()
