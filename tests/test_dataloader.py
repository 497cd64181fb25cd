"""The samples of a datafile: their fbanks, labels and augmentation."""
import json
import sys

import pytest
import soundfile
import torch

import golden
from audio.fbank import count_frames, fbank
from audio.reading import AudioError, load_waveform
from dataloader import AudiosetDataset, SampleKey
from small_dataset import CONF, EVERYTHING, equal
from utilities.errors import DataError


def key_with_partner(dataset, index, partner):
    """Return a SampleKey whose mixup partner is the one wanted."""
    return next(key for key in (SampleKey(index, 0, 1, position) for position in range(1000))
                if dataset.draw_augmentation(key).partner == partner)


@pytest.mark.parametrize('name', ['w05', 'w10', 'w12', 'w5'])
def test_recordings_become_the_published_input(tmp_path, golden_json, make_labels, make_datafile,
                                               name):
    case = next(case for case in golden_json('data.json')['cases'] if case['name'] == name)
    soundfile.write(tmp_path / 'clip.wav', golden.waveform(name, case['seconds']), 16000)
    datafile = make_datafile([(tmp_path / 'clip.wav', ','.join(f'/m/{i}' for i in case['labels']))])
    conf = {'num_mel_bins': 128, 'target_length': case['target_length'], 'freqm': 0, 'timem': 0,
            'mixup': 0, 'dataset': 'golden', 'mode': 'evaluation', 'mean': case['mean'],
            'std': case['std'], 'noise': False}
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
def test_each_class_of_a_recording_is_1_whatever_the_order(make_dataset, make_tone, labels,
                                                           expected):
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
    lam = dataset.draw_augmentation(key).lam
    assert dataset[key][1].tolist() == pytest.approx([lam, 0, 1 - lam, 0])
    assert 0 < lam < 1


def test_a_negative_has_no_labels_and_takes_its_share_of_a_mix(make_dataset, make_tone):
    entries = [(make_tone('a.wav'), ''), (make_tone('b.wav'), '/m/1')]
    assert make_dataset(entries)[0][1].tolist() == [0, 0, 0, 0]
    dataset = make_dataset(entries, mode='train', mixup=1.0)
    for first, partner in ((0, 1), (1, 0)):
        key = key_with_partner(dataset, first, partner)
        lam = dataset.draw_augmentation(key).lam
        assert dataset[key][1].tolist() == pytest.approx([0, (1 - lam, lam)[first], 0, 0])


def test_labels_of_a_mix_add_up_for_classes_that_both_have(make_dataset, make_tone):
    entries = [(make_tone('a.wav'), '/m/0'), (make_tone('b.wav'), '/m/0,/m/1')]
    dataset = make_dataset(entries, mode='train', mixup=1.0)
    key = key_with_partner(dataset, 0, 1)
    lam = dataset.draw_augmentation(key).lam
    assert dataset[key][1].tolist() == pytest.approx([1, 1 - lam, 0, 0])


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
    keys = [SampleKey(0, 3, 1, position) for position in range(5)]
    assert any(not torch.equal(dataset[key][0], plain) for key in keys)


def test_masks_are_drawn_before_the_normalisation(make_dataset, make_tone):
    dataset = make_dataset([(make_tone('a.wav'), '/m/0')], mode='train', freqm=30, mean=-4, std=2)
    key = SampleKey(0, 0, 1, 0)
    start, width = dataset.draw_augmentation(key).freq_mask
    assert width > 0
    assert (dataset[key][0][:, start:start + width] == 1).all()


@pytest.mark.parametrize('conf, word', [
    ({'freq': 3}, 'freq'), ({'crop': 'rand'}, "crop must be .*'rand'"),
    *(({'mode': mode}, f'mode must be .*{mode!r}')
      for mode in ('tests', 'trian', 'eval ', '', None, 3, True, ('train',)))])
def test_an_audio_conf_with_an_unknown_key_mode_or_crop_is_refused(make_dataset, tones, conf, word):
    with pytest.raises(DataError, match=f'audio_conf.*{word}'):
        make_dataset(tones, **conf)


@pytest.mark.parametrize('mode, meant', [
    ('train', 'train'), ('training', 'train'), ('Train', 'train'), ('TRAINING', 'train'),
    *((word, 'evaluation') for word in ('val', 'valid', 'validation', 'eval', 'evaluation', 'test',
                                        'Test', 'VAL'))])
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
    keys = [SampleKey(i, 5, 2, 10 + i) for i in range(6)]
    assert all(equal(first[key], again[key]) for key in keys)


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


def test_of_a_recording_of_hours_only_the_beginning_is_read(make_dataset, make_tone, monkeypatch):
    path = make_tone('long.wav', seconds=20, rate=44100)
    whole = fbank(load_waveform(path), CONF['num_mel_bins'])[:CONF['target_length']]
    read = []

    def record(waveform, *settings):
        read.append(len(waveform))
        return fbank(waveform, *settings)
    monkeypatch.setattr('dataloader.fbank', record)
    features, _ = make_dataset([(path, '/m/0')], skip_norm=True)[0]
    assert read[0] < 2 * 16000
    assert features == pytest.approx(whole, abs=1e-3)


def test_a_large_datafile_makes_no_python_objects_for_workers_to_copy(make_dataset):
    make_dataset([('a.wav', '/m/0')])
    entries = [(f'/some/folder/of/recordings/{i}.wav', '/m/1,/m/2') for i in range(100_000)]
    before = sys.getallocatedblocks()
    dataset = make_dataset(entries)
    assert len(dataset) == 100_000
    assert sys.getallocatedblocks() - before < 5000
