"""Datafile to samples, the order of an epoch, and batches."""
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch

import golden
from audio.fbank import count_frames, fbank
from audio.reading import AudioError, load_waveform
from dataloader import AudiosetDataset, SampleKey
from training.batches import EpochSampler, WaveformDataset, make_loader
from utilities.errors import DataError
from utilities.parallel import available_cores

CONF = {'num_mel_bins': 64, 'target_length': 40, 'mode': 'evaluation'}
EVERYTHING = {'mode': 'train', 'mixup': 0.5, 'freqm': 12, 'timem': 10, 'noise': True}


@pytest.fixture
def make_dataset(make_labels, make_datafile):
    """A dataset of (wav, labels) pairs with four classes; further arguments go into audio_conf."""
    def make(entries, kind=AudiosetDataset, **conf):
        return kind(make_datafile(entries), {**CONF, **conf}, make_labels(4))
    return make


@pytest.fixture
def tones(make_tone):
    """Six recordings of 0.3 s at various rates, as (wav, labels) pairs."""
    return [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=0.3, rate=rate, seed=i), f'/m/{i % 4}')
            for i, rate in enumerate((16000, 44100, 16000, 8000, 48000, 16000))]


@pytest.fixture
def threads():
    """Choose torch's number of threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def equal(first, second):
    """Whether two samples or batches are the same in every bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def key_with_partner(dataset, index, partner):
    """A SampleKey whose mixup partner is the one wanted."""
    return next(key for key in (SampleKey(index, 0, 1, position) for position in range(1000))
                if dataset.augmentation(key).partner == partner)


def epoch(dataset, workers, epochs=(1,), weights=None):
    """All batches of three of some epochs, from one loader."""
    loader = make_loader(dataset, 3, workers, pin_memory=False, sampler=EpochSampler(len(dataset), 7, weights))
    batches = []
    for number in epochs:
        loader.batch_sampler.sampler.set_epoch(number)
        batches += [(fbanks.to('cpu'), labels) for fbanks, labels in loader]
    return batches


@pytest.mark.parametrize('name', ['w05', 'w10', 'w12', 'w5'])
def test_recordings_become_the_published_input(tmp_path, golden_json, make_labels, make_datafile, name):
    case = next(case for case in golden_json('data.json')['cases'] if case['name'] == name)
    soundfile.write(tmp_path / 'clip.wav', golden.waveform(name, case['seconds']), 16000)
    datafile = make_datafile([(tmp_path / 'clip.wav', ','.join(f'/m/{i}' for i in case['labels']))])
    conf = {'num_mel_bins': 128, 'target_length': case['target_length'], 'freqm': 0, 'timem': 0, 'mixup': 0,
            'dataset': 'golden', 'mode': 'evaluation', 'mean': case['mean'], 'std': case['std'], 'noise': False}
    fbank, labels = AudiosetDataset(datafile, conf, make_labels(12))[0]
    measured = golden.digest(fbank)
    assert list(fbank.shape) == case['shape']
    assert measured['val'] == pytest.approx(case['fbank']['val'], abs=1e-3)
    assert measured['abs_sum'] == pytest.approx(case['fbank']['abs_sum'], rel=1e-5)
    assert labels.nonzero().flatten().tolist() == case['labels']


def test_a_sample_is_a_float32_fbank_and_float32_labels(make_dataset, tones):
    dataset = make_dataset(tones)
    fbank, labels = dataset[0]
    assert len(dataset) == 6
    assert fbank.shape == (40, 64) and fbank.dtype == torch.float32
    assert labels.shape == (4,) and labels.dtype == torch.float32


@pytest.mark.parametrize('labels, expected', [('/m/2', [0, 0, 1, 0]), ('/m/3,/m/0', [1, 0, 0, 1]),
                                              ('/m/1,/m/1', [0, 1, 0, 0])])
def test_each_class_of_a_recording_is_1_whatever_the_order(make_dataset, make_tone, labels, expected):
    assert make_dataset([(make_tone('a.wav'), labels)])[0][1].tolist() == expected


def test_other_keys_of_a_datafile_do_not_matter(tmp_path, make_tone, make_labels):
    datafile = tmp_path / 'data.json'
    entry = {'video_id': 'x', 'wav': str(make_tone('a.wav')), 'labels': '/m/1', 'image': 3}
    datafile.write_text(json.dumps({'data': [entry], 'made_by': 'hand'}))
    assert AudiosetDataset(datafile, CONF, make_labels(4))[0][1].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize('suffix, rate, channels', [('wav', 16000, 1), ('flac', 44100, 2)])
@pytest.mark.parametrize('start, seconds', [(1, 0.2), (1.25, None), (2.9, 0.3), (0, 0.2)])
def test_only_what_an_entry_names_of_its_recording_is_heard(
        tmp_path, make_tone, make_labels, suffix, rate, channels, start, seconds):
    path = make_tone(f'long.{suffix}', seconds=3, rate=rate, channels=channels)
    cut = tmp_path / f'cut.{suffix}'
    end = None if seconds is None else round((start + seconds) * rate)
    soundfile.write(cut, soundfile.read(path)[0][round(start * rate):end], rate)
    window = {'start': start} | ({} if seconds is None else {'seconds': seconds})
    entries = [{'wav': str(path), 'labels': '/m/1', **window}, {'wav': str(cut), 'labels': '/m/1'}]
    datafile = tmp_path / 'data.json'
    datafile.write_text(json.dumps({'data': entries}))
    conf = CONF | {'skip_norm': True}  # padding is then 0
    (heard, _), (wanted, _) = AudiosetDataset(datafile, conf, make_labels(4))
    assert heard == pytest.approx(wanted, abs=2e-3 if rate == 16000 else 0.2)
    real = count_frames(round(min(seconds or 3, 3 - start) * 16000))
    assert (heard[real:] == 0).all() and not (heard[:real] == 0).any()


def test_a_start_after_the_end_of_its_recording_is_an_error(tmp_path, make_tone, make_labels):
    datafile = tmp_path / 'data.json'
    entry = {'wav': str(make_tone('a.wav')), 'labels': '/m/1', 'start': 30}
    datafile.write_text(json.dumps({'data': [entry]}))
    with pytest.raises(AudioError, match='a.wav.*holds no samples after 30'):
        AudiosetDataset(datafile, CONF, make_labels(4))[0]


def test_a_recording_shorter_than_a_window_is_all_padding(make_dataset, make_tone):
    fbank, _ = make_dataset([(make_tone('a.wav', seconds=0.02), '/m/0')], mean=-4, std=2)[0]
    assert fbank.unique().tolist() == [1.0]


def test_padding_is_added_before_the_normalisation(make_dataset, make_tone):
    fbank, _ = make_dataset([(make_tone('a.wav', seconds=0.1), '/m/0')], mean=-4, std=2)[0]
    assert (fbank[8:] == 1).all() and not (fbank[:8] == 1).any()


def test_skip_norm_leaves_the_log_energies(make_dataset, tones):
    plain = make_dataset(tones, skip_norm=True)[0][0]
    torch.testing.assert_close(make_dataset(tones, mean=-3.0, std=2.0)[0][0], (plain + 3) / 4)
    assert not (plain[28:]).any()


def test_a_mixed_sample_shares_its_labels_with_its_partner(make_dataset, tones):
    dataset = make_dataset(tones, mode='train', mixup=1.0)
    key = key_with_partner(dataset, 0, 2)
    lam = dataset.augmentation(key).lam
    assert dataset[key][1].tolist() == pytest.approx([lam, 0, 1 - lam, 0])
    assert 0 < lam < 1


def test_a_negative_has_no_labels_and_takes_its_share_of_a_mix(make_dataset, make_tone):
    entries = [(make_tone('a.wav'), ''), (make_tone('b.wav'), '/m/1')]
    assert make_dataset(entries)[0][1].tolist() == [0, 0, 0, 0]
    dataset = make_dataset(entries, mode='train', mixup=1.0)
    for first, partner in ((0, 1), (1, 0)):
        key = key_with_partner(dataset, first, partner)
        lam = dataset.augmentation(key).lam
        assert dataset[key][1].tolist() == pytest.approx([0, (1 - lam, lam)[first], 0, 0])


def test_labels_of_a_mix_add_up_where_the_partners_meet(make_dataset, make_tone):
    dataset = make_dataset([(make_tone('a.wav'), '/m/0'), (make_tone('b.wav'), '/m/0,/m/1')], mode='train', mixup=1.0)
    key = key_with_partner(dataset, 0, 1)
    assert dataset[key][1].tolist() == pytest.approx([1, 1 - dataset.augmentation(key).lam, 0, 0])


@pytest.mark.parametrize('rate, channels', [(16000, 1), (44100, 1), (8000, 1), (48000, 2)])
def test_a_mixup_partner_keeps_its_pitch_at_any_rate(make_dataset, make_tone, rate, channels):
    first, partner = make_tone('a.wav', 500), make_tone('b.wav', 3000, rate=rate, channels=channels)
    loudest = make_dataset([(make_tone('c.wav', 3000), '/m/0')])[0][0].mean(dim=0).argmax()
    dataset = make_dataset([(first, '/m/0'), (partner, '/m/1')], mode='train', mixup=1.0)
    treble = dataset[key_with_partner(dataset, 0, 1)][0].mean(dim=0)[32:]
    assert loudest > 32
    assert treble.argmax() + 32 == loudest


def test_evaluation_does_not_augment(make_dataset, tones):
    plain, asked = make_dataset(tones), make_dataset(tones, **{**EVERYTHING, 'mode': 'evaluation'})
    assert all(equal(plain[i], asked[i]) for i in range(6))


def test_training_with_nothing_switched_on_is_the_evaluation_input(make_dataset, tones):
    assert equal(make_dataset(tones)[1], make_dataset(tones, mode='train')[SampleKey(1, 0, 1, 0)])


@pytest.mark.parametrize('changes', [{'mixup': 1.0}, {'freqm': 60}, {'timem': 30}, {'noise': True}])
def test_each_augmentation_changes_the_training_input(make_dataset, tones, changes):
    dataset, plain = make_dataset(tones, mode='train', **changes), make_dataset(tones)[0][0]
    assert any(not torch.equal(dataset[SampleKey(0, 3, 1, position)][0], plain) for position in range(5))


def test_masks_are_drawn_before_the_normalisation(make_dataset, make_tone):
    dataset = make_dataset([(make_tone('a.wav'), '/m/0')], mode='train', freqm=30, mean=-4, std=2)
    key = SampleKey(0, 0, 1, 0)
    start, width = dataset.augmentation(key).freq_mask
    assert width > 0
    assert (dataset[key][0][:, start:start + width] == 1).all()


@pytest.mark.parametrize('conf, word', [
    ({'freq': 3}, 'freq'), *(({'mode': mode}, f'mode must be .*{mode!r}')
                             for mode in ('tests', 'trian', 'eval ', '', None, 3, True, ('train',)))])
def test_an_audio_conf_with_an_unknown_key_or_mode_is_refused(make_dataset, tones, conf, word):
    with pytest.raises(DataError, match=f'audio_conf.*{word}'):
        make_dataset(tones, **conf)


@pytest.mark.parametrize('mode, meant', [
    ('train', 'train'), ('training', 'train'), ('Train', 'train'), ('TRAINING', 'train'),
    *((word, 'evaluation') for word in ('val', 'valid', 'validation', 'eval', 'evaluation', 'test', 'Test', 'VAL'))])
def test_every_word_for_a_mode_is_understood_in_any_case(make_dataset, tones, mode, meant):
    settings = {**EVERYTHING, 'mixup': 1.0}
    asked, plain = (make_dataset(tones, **{**settings, 'mode': word}) for word in (mode, meant))
    assert asked.conf == plain.conf and asked.conf.mode == meant
    key = SampleKey(1, 0, 1, 0)
    assert equal(asked[key], plain[key])
    assert equal(asked[key], make_dataset(tones)[1]) == (meant == 'evaluation')


@pytest.mark.parametrize('key', ['num_mel_bins', 'target_length', 'mode'])
def test_an_audio_conf_without_a_needed_key_is_refused(make_labels, make_datafile, tones, key):
    conf = {name: value for name, value in CONF.items() if name != key}
    with pytest.raises(DataError, match=f'lacks {key}'):
        AudiosetDataset(make_datafile(tones), conf, make_labels(4))


def test_the_same_key_gives_the_same_sample(make_dataset, tones):
    first, again = make_dataset(tones, **EVERYTHING), make_dataset(tones, **EVERYTHING)
    assert all(equal(first[SampleKey(i, 5, 2, 10 + i)], again[SampleKey(i, 5, 2, 10 + i)]) for i in range(6))


@pytest.mark.parametrize('change', [{'seed': 6}, {'epoch': 3}, {'position': 11}])
def test_another_seed_epoch_or_position_gives_another_sample(make_dataset, tones, change):
    dataset, key = make_dataset(tones, **EVERYTHING), SampleKey(0, 5, 2, 10)
    assert not torch.equal(dataset[key][0], dataset[key._replace(**change)][0])


def test_a_bare_index_draws_from_torchs_generator(make_dataset, tones):
    dataset = make_dataset(tones, **EVERYTHING)
    torch.manual_seed(0)
    first, other = dataset[0], dataset[0]
    torch.manual_seed(0)
    assert equal(first, dataset[0]) and not torch.equal(first[0], other[0])


def test_a_sample_does_not_depend_on_the_number_of_threads(make_dataset, make_tone, threads):
    clips = [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=10, seed=i), f'/m/{i}') for i in range(3)]
    dataset, samples = make_dataset(clips, target_length=1024, num_mel_bins=128, **{**EVERYTHING, 'mixup': 1.0}), []
    for count in (1, 2, 4):
        threads(count)
        samples.append([dataset[SampleKey(i, 5, 2, i)] for i in range(3)])
        assert torch.get_num_threads() == count
    assert all(equal(first, other) for run in samples[1:] for first, other in zip(samples[0], run))


def test_batches_do_not_depend_on_the_number_of_workers(make_dataset, tones):
    dataset = make_dataset(tones, **EVERYTHING)
    alone, shared = (epoch(dataset, workers, epochs=(1, 2)) for workers in (0, 2))
    assert len(alone) == 4
    assert all(equal(first, second) for first, second in zip(alone, shared, strict=True))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])
def test_batches_from_shards_are_those_from_files(make_dataset, tones, tmp_path, kind, workers):
    packed = []
    for i, (path, labels) in enumerate(tones):
        with zipfile.ZipFile(tmp_path / f'{i % 2}.zip', 'a') as archive:
            archive.write(path, path.name)
        packed.append((tmp_path / f'{i % 2}.zip' / path.name, labels))
    weights = np.array([1.0, 2, 0, 3, 1, 1])
    from_files, from_shards = (epoch(make_dataset(clips, kind, **EVERYTHING), workers, (1, 2), weights)
                               for clips in (tones, packed))
    assert len(from_files) == 4
    assert all(equal(first, second) for first, second in zip(from_files, from_shards, strict=True))


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('conf', [{'mode': 'train'}, EVERYTHING, {**EVERYTHING, 'noise': False},
                                  {'skip_norm': True}])
def test_batches_of_waveforms_become_the_batches_of_fbanks(make_dataset, make_tone, tones, conf, workers):
    tones += [(make_tone('long.wav', seconds=2.5), '/m/1'), (make_tone('no_frame.wav', seconds=0.02), '/m/2')]
    samples, _ = soundfile.read(tones[0][0])
    soundfile.write(tones[0][0], 0.5 + samples / 2, 16000)  # far from a mean of 0
    plain, batched = (epoch(make_dataset(tones, kind, **conf), workers) for kind in (AudiosetDataset, WaveformDataset))
    tolerance = 1e-3 if 'skip_norm' in conf else 1e-4  # of a logarithm, and what normalising leaves of it
    for (fbanks, labels), (from_waveforms, same_labels) in zip(plain, batched, strict=True):
        assert torch.equal(labels, same_labels)
        torch.testing.assert_close(from_waveforms, fbanks, rtol=0, atol=tolerance)


def test_workers_that_live_on_augment_the_next_epoch_anew(make_dataset, tones):
    dataset = make_dataset(tones[:1], **EVERYTHING)
    first, second = epoch(dataset, 1, epochs=(1, 2))
    assert not torch.equal(first[0], second[0])


def test_a_clip_drawn_twice_is_augmented_twice_differently(make_dataset, tones):
    dataset = make_dataset(tones, mode='train', noise=True)
    fbanks = torch.cat([fbanks for fbanks, _ in epoch(dataset, 0, weights=np.array([0, 0, 1.0, 0, 0, 0]))])
    labels = torch.cat([labels for _, labels in epoch(dataset, 0, weights=np.array([0, 0, 1.0, 0, 0, 0]))])
    assert (labels[:, 2] == 1).all()
    assert len(fbanks.flatten(1).unique(dim=0)) == 6


def test_an_epoch_visits_every_sample_once():
    keys = list(EpochSampler(100, 0))
    assert sorted(key.index for key in keys) == list(range(100))
    assert [key.position for key in keys] == list(range(100))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(100, seed)
        sampler.set_epoch(epoch)
        return tuple(key.index for key in sampler)
    assert order(1, 2) == order(1, 2)
    assert len({order(1, 2), order(1, 3), order(2, 2), order(2, 3)}) == 4


def test_weighted_draws_follow_the_weights():
    drawn = [key.index for key in EpochSampler(20000, 0, np.r_[3.0, 1.0, np.zeros(19998)])]
    assert len(drawn) == 20000
    assert np.bincount(drawn, minlength=2) / 20000 == pytest.approx([0.75, 0.25], abs=0.01)


def test_of_a_recording_of_hours_only_the_beginning_is_read(make_dataset, make_tone, monkeypatch):
    path = make_tone('long.wav', seconds=20, rate=44100)
    whole = fbank(load_waveform(path), CONF['num_mel_bins'])[:CONF['target_length']]
    read = []
    monkeypatch.setattr('dataloader.fbank', lambda waveform, bins: read.append(len(waveform)) or fbank(waveform, bins))
    features, _ = make_dataset([(path, '/m/0')], skip_norm=True)[0]
    assert read[0] < 2 * 16000
    assert features == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_recording_stops_the_epoch_and_is_named(tmp_path, make_dataset, tones, workers):
    (tmp_path / 'broken.flac').write_text('no sound')
    dataset = make_dataset([*tones, (tmp_path / 'broken.flac', '/m/0')])
    with pytest.raises(AudioError, match='broken.flac'):
        epoch(dataset, workers)


@pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])
def test_an_unreadable_recording_is_replaced_by_another_that_seed_epoch_and_position_choose(
        make_dataset, tones, tmp_path, caplog, kind):
    (tmp_path / 'text.wav').write_text('no audio')
    entries = [*tones, (tmp_path / 'text.wav', '/m/0'), (tmp_path / 'gone.wav', '/m/1')]
    dataset = make_dataset(entries, kind, **EVERYTHING)
    alone, shared = (epoch(dataset, workers, epochs=(1, 2)) for workers in (0, 2))
    assert all(equal(first, second) for first, second in zip(alone, shared, strict=True))
    assert sum(len(labels) for _, labels in alone) == 2 * len(entries)
    for name in ('gone.wav does not exist', 'text.wav'):  # once for each of the loaders
        assert sum(name in text and 'another sample takes its place' in text for text in caplog.messages) == 2


def test_what_replaces_a_sample_depends_on_seed_epoch_position_and_attempt_alone(make_dataset, tones):
    dataset = make_dataset(tones, **EVERYTHING)
    drawn = [dataset.draw(key, attempt) for key, attempt in (
        (SampleKey(0, 7, 1, 0), 1), (SampleKey(0, 8, 1, 0), 1), (SampleKey(0, 7, 2, 0), 1), (SampleKey(0, 7, 1, 1), 1),
        (SampleKey(0, 7, 1, 0), 2))]
    assert len(set(drawn)) == len(drawn)
    assert dataset.draw(SampleKey(1, 7, 1, 0), 1) == drawn[0]


def test_replaced_samples_are_counted(make_dataset, tones, tmp_path):
    dataset = make_dataset([*tones, (tmp_path / 'gone.wav', '/m/1')], mode='train')
    loader = make_loader(dataset, 3, 1, pin_memory=False, sampler=EpochSampler(len(dataset), 7))
    loader.batch_sampler.sampler.set_epoch(1)
    assert len(list(loader)) == 3 and loader.bad_audio.count == 1
    assert list(loader.bad_audio.reasons) == [f'the audio file {tmp_path}/gone.wav does not exist']


def test_a_sample_that_stands_in_for_an_empty_part_is_not_counted_twice(make_dataset, tones, tmp_path,
                                                                        be_process):
    dataset = make_dataset([*tones, (tmp_path / 'gone.wav', '/m/1')], mode='train')
    gone, batch_size = len(dataset) - 1, len(dataset) - 1  # so that the last batch is one sample, of the first process

    def sampler(seed):
        return EpochSampler(len(dataset), seed)
    seed = next(seed for seed in range(1000) if list(sampler(seed))[-1].index == gone)
    for rank, bad in ((0, 1), (1, 0)):
        be_process(rank, 2)
        loader = make_loader(dataset, batch_size, 0, pin_memory=False, sampler=sampler(seed))
        assert len(list(loader)) == 2
        assert loader.bad_audio.count == bad


def test_where_nothing_can_be_read_training_ends(make_dataset, tmp_path):
    dataset = make_dataset([(tmp_path / f'{i}.wav', '/m/1') for i in range(30)], mode='train')
    with pytest.raises(AudioError, match='20 recordings in a row.*check_data.py'):
        dataset[SampleKey(0, 0, 1, 0)]


def test_a_large_datafile_makes_no_python_objects_for_workers_to_copy(make_dataset):
    make_dataset([('a.wav', '/m/0')])
    before = sys.getallocatedblocks()
    dataset = make_dataset([(f'/some/folder/of/recordings/{i}.wav', '/m/1,/m/2') for i in range(100_000)])
    assert len(dataset) == 100_000
    assert sys.getallocatedblocks() - before < 5000


@pytest.mark.parametrize('asked, workers', [(-1, available_cores()), (0, 0), (2, 2)])
def test_minus_one_worker_means_one_a_core(make_dataset, tones, asked, workers):
    assert make_loader(make_dataset(tones), 2, asked, pin_memory=False).num_workers == workers


def test_workers_that_are_left_do_not_keep_a_program_from_ending(root):
    code = ('import sys; sys.path.insert(0, "src"); import torch; from training.batches import make_loader; '
            'loader = make_loader(torch.arange(4), 2, 1, pin_memory=False); print(next(iter(loader)))')
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and 'tensor([0, 1])' in done.stdout, done.stderr
