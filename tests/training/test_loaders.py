"""Batches: the same for any number of workers and threads, and with unreadable recordings."""
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch

from audio.reading import AudioError
from dataloader import AudiosetDataset, SampleKey
from small_dataset import EVERYTHING, FURTHER_AUGMENTATION, equal, load_epochs
from training.bad_audio import ReplaceUnreadable
from training.gpu_fbanks import WaveformDataset
from training.loaders import make_loader
from training.sampler import EpochSampler
from utilities.parallel import available_cores

BOTH_KINDS = pytest.mark.parametrize('kind', [AudiosetDataset, WaveformDataset])


@pytest.fixture
def threads():
    """Choose torch's number of threads, which is put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def require_same(batches, others):
    """Fail if two lists of batches differ in any bit."""
    assert all(equal(first, second) for first, second in zip(batches, others, strict=True))


def test_batches_do_not_depend_on_the_number_of_threads(make_dataset, make_tone, threads):
    clips = [(make_tone(f'{i}.wav', 300 * (i + 1), seconds=10, seed=i), f'/m/{i}')
             for i in range(3)]
    size = {'target_length': 1024, 'num_mel_bins': 128}
    dataset = make_dataset(clips, **size, **{**EVERYTHING, 'mixup': 1.0})
    runs = []
    for count in (1, 2, 4):
        threads(count)
        runs.append(load_epochs(dataset, workers=0))
        assert torch.get_num_threads() == count
    for run in runs[1:]:
        require_same(run, runs[0])


def test_batches_do_not_depend_on_the_number_of_workers(make_dataset, tones):
    dataset = make_dataset(tones, **EVERYTHING)
    alone, shared = (load_epochs(dataset, workers, epochs=(1, 2)) for workers in (0, 2))
    assert len(alone) == 4
    require_same(alone, shared)


def test_further_augmentation_does_not_depend_on_the_number_of_workers_either(make_dataset, tones,
                                                                              make_tone):
    tones += [(make_tone(f'long{i}.flac', seconds=3, seed=i), f'/m/{i}') for i in range(3)]
    dataset = make_dataset(tones, noise_dir=str(tones[0][0].parent), **EVERYTHING, **FURTHER_AUGMENTATION)
    require_same(load_epochs(dataset, 0, epochs=(1, 2)), load_epochs(dataset, 2, epochs=(1, 2)))


@pytest.mark.parametrize('workers', [0, 2])
@BOTH_KINDS
def test_batches_from_shards_are_those_from_files(make_dataset, tones, tmp_path, kind, workers):
    packed = []
    for i, (path, labels) in enumerate(tones):
        with zipfile.ZipFile(tmp_path / f'{i % 2}.zip', 'a') as archive:
            archive.write(path, path.name)
        packed.append((tmp_path / f'{i % 2}.zip' / path.name, labels))
    weights = np.array([1.0, 2, 0, 3, 1, 1])
    from_files, from_shards = (
        load_epochs(make_dataset(clips, kind, **EVERYTHING), workers, (1, 2), weights)
        for clips in (tones, packed))
    assert len(from_files) == 4
    require_same(from_files, from_shards)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('conf', [{'mode': 'train'}, EVERYTHING, {**EVERYTHING, 'noise': False},
                                  {'skip_norm': True}, {**EVERYTHING, **FURTHER_AUGMENTATION},
                                  {'mode': 'train', 'spec_mixup': 1.0, 'noise_dir': True}])
def test_batches_of_waveforms_become_the_batches_of_fbanks(make_dataset, make_tone, tones, conf,
                                                           workers):
    tones += [(make_tone('long.wav', seconds=2.5), '/m/1'),
              (make_tone('no_frame.wav', seconds=0.02), '/m/2')]
    samples, _ = soundfile.read(tones[0][0])
    soundfile.write(tones[0][0], 0.5 + samples / 2, 16000)  # far from a mean of 0
    if 'noise_dir' in conf:
        conf = {**conf, 'noise_dir': str(tones[0][0].parent)}
    plain, batched = (load_epochs(make_dataset(tones, kind, **conf), workers)
                      for kind in (AudiosetDataset, WaveformDataset))
    # Of a logarithm, and what normalising leaves of it. A tone as noise has bins of little energy.
    tolerance = 1e-3 if 'skip_norm' in conf or 'noise_dir' in conf else 1e-4
    for (fbanks, labels), (from_waveforms, same_labels) in zip(plain, batched, strict=True):
        assert torch.equal(labels, same_labels)
        torch.testing.assert_close(from_waveforms, fbanks, rtol=0, atol=tolerance)


def test_workers_that_live_on_augment_the_next_epoch_anew(make_dataset, tones):
    dataset = make_dataset(tones[:1], **EVERYTHING)
    first, second = load_epochs(dataset, 1, epochs=(1, 2))
    assert not torch.equal(first[0], second[0])


def test_a_clip_drawn_twice_is_augmented_twice_differently(make_dataset, tones):
    dataset = make_dataset(tones, mode='train', noise=True)
    batches = load_epochs(dataset, 0, weights=np.array([0, 0, 1.0, 0, 0, 0]))
    fbanks, labels = map(torch.cat, zip(*batches, strict=True))
    assert (labels[:, 2] == 1).all()
    assert len(fbanks.flatten(1).unique(dim=0)) == 6


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_recording_stops_the_epoch_and_is_named(tmp_path, make_dataset, tones, workers):
    (tmp_path / 'broken.flac').write_text('no sound')
    dataset = make_dataset([*tones, (tmp_path / 'broken.flac', '/m/0')])
    with pytest.raises(AudioError, match='broken.flac'):
        load_epochs(dataset, workers)


@BOTH_KINDS
def test_an_unreadable_recording_is_replaced_by_another_that_seed_epoch_and_position_choose(
        make_dataset, tones, tmp_path, caplog, kind):
    (tmp_path / 'text.wav').write_text('no audio')
    entries = [*tones, (tmp_path / 'text.wav', '/m/0'), (tmp_path / 'gone.wav', '/m/1')]
    dataset = make_dataset(entries, kind, **EVERYTHING)
    alone, shared = (load_epochs(dataset, workers, epochs=(1, 2)) for workers in (0, 2))
    require_same(alone, shared)
    assert sum(len(labels) for _, labels in alone) == 2 * len(entries)
    for name in ('gone.wav does not exist', 'text.wav'):  # once for each of the loaders
        said = [text for text in caplog.messages if name in text]
        assert sum('another sample takes its place' in text for text in said) == 2


def test_what_replaces_a_sample_depends_on_seed_epoch_position_and_attempt_alone(make_dataset,
                                                                                  tones):
    dataset = ReplaceUnreadable(make_dataset(tones, **EVERYTHING))
    drawn = [dataset.draw_replacement(key, attempt) for key, attempt in (
        (SampleKey(0, 7, 1, 0), 1), (SampleKey(0, 8, 1, 0), 1), (SampleKey(0, 7, 2, 0), 1),
        (SampleKey(0, 7, 1, 1), 1), (SampleKey(0, 7, 1, 0), 2))]
    assert len(set(drawn)) == len(drawn)
    assert dataset.draw_replacement(SampleKey(1, 7, 1, 0), 1) == drawn[0]


def test_replaced_samples_are_counted(make_dataset, tones, tmp_path):
    dataset = make_dataset([*tones, (tmp_path / 'gone.wav', '/m/1')], mode='train')
    loader = make_loader(ReplaceUnreadable(dataset), 3, 1, pin_memory=False,
                         sampler=EpochSampler(len(dataset), 7))
    loader.batch_sampler.sampler.set_epoch(1)
    assert len(list(loader)) == 3 and loader.bad_audio.count == 1
    reasons = [f'the audio file {tmp_path}/gone.wav does not exist']
    assert list(loader.bad_audio.reasons) == reasons


def test_a_sample_that_stands_in_for_an_empty_part_is_not_counted_twice(make_dataset, tones,
                                                                        tmp_path, be_process):
    dataset = make_dataset([*tones, (tmp_path / 'gone.wav', '/m/1')], mode='train')
    # The last batch is one sample, of the first process.
    gone, batch_size = len(dataset) - 1, len(dataset) - 1

    def sampler(seed):
        return EpochSampler(len(dataset), seed)
    seed = next(seed for seed in range(1000) if list(sampler(seed))[-1].index == gone)
    for rank, bad in ((0, 1), (1, 0)):
        be_process(rank, 2)
        loader = make_loader(ReplaceUnreadable(dataset), batch_size, 0, pin_memory=False,
                             sampler=sampler(seed))
        assert len(list(loader)) == 2
        assert loader.bad_audio.count == bad


def test_if_nothing_can_be_read_training_ends(make_dataset, tmp_path):
    dataset = make_dataset([(tmp_path / f'{i}.wav', '/m/1') for i in range(30)], mode='train')
    with pytest.raises(AudioError, match='20 recordings in a row.*check_data.py'):
        ReplaceUnreadable(dataset)[SampleKey(0, 0, 1, 0)]


@pytest.mark.parametrize('asked, workers', [(-1, available_cores()), (0, 0), (2, 2)])
def test_minus_one_worker_means_one_a_core(make_dataset, tones, asked, workers):
    loader = make_loader(make_dataset(tones), 2, asked, pin_memory=False)
    assert loader.num_workers == workers


def test_workers_that_are_left_do_not_keep_a_program_from_ending(root):
    code = """if True:
        import sys
        sys.path.insert(0, 'src')
        import torch
        from training.loaders import make_loader
        loader = make_loader(torch.arange(4), 2, 1, pin_memory=False)
        print(next(iter(loader)))"""
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0 and 'tensor([0, 1])' in done.stdout, done.stderr
