"""Statistics of a dataset: exact, over real frames, without augmentation."""
import json
import os
import signal

import numpy as np
import pytest

import get_norm_stats
from audio.fbank import fbank
from audio.reading import load_waveform
from training import norm_stats


@pytest.mark.parametrize('options, frames', [([], None), (['--audio_length', '20'], 20),
                                             (['--num_workers', '2'], None)])
def test_mean_and_std_are_those_of_all_real_frames(make_tone, make_labels, make_datafile, capsys,
                                                   options, frames):
    paths = [make_tone(f'{i}.wav', 300 * (i + 1), seconds, seed=i)
             for i, seconds in enumerate((0.3, 0.5, 1.1))]
    datafile = make_datafile([(path, '/m/0') for path in paths])
    get_norm_stats.main(['--data-train', str(datafile), '--label_csv', str(make_labels(1)),
                         *options])
    fbanks = [fbank(load_waveform(path), 128)[:frames].numpy() for path in paths]
    values = np.concatenate(fbanks).astype(float)
    printed = capsys.readouterr().out.split()
    assert printed[::2] == ['--dataset_mean', '--dataset_std']
    numbers = [float(number) for number in printed[1::2]]
    assert numbers == pytest.approx([values.mean(), values.std()], abs=1e-4)


def test_only_the_part_that_an_entry_names_counts(make_tone, make_labels, tmp_path, capsys):
    wav, datafile = make_tone('a.wav', seconds=3), tmp_path / 'data.json'
    entry = {'wav': str(wav), 'labels': '/m/0', 'start': 1, 'seconds': 0.5}
    datafile.write_text(json.dumps({'data': [entry]}))
    get_norm_stats.main(['--data_train', str(datafile), '--label_csv', str(make_labels(1))])
    values = fbank(load_waveform(wav)[16000:24000], 128).numpy()
    assert float(capsys.readouterr().out.split()[1]) == pytest.approx(values.mean(), abs=1e-4)


def test_a_dataset_without_a_whole_frame_is_named(make_tone, make_labels, make_datafile):
    datafile = make_datafile([(make_tone('short.wav', seconds=0.01), '/m/0')])
    with pytest.raises(SystemExit, match='no recording is as long'):
        get_norm_stats.main(['--data_train', str(datafile), '--label_csv', str(make_labels(1)),
                             '--num_workers', '0'])


class Deadly(norm_stats.FbankSums):
    """A dataset whose reader is killed; a worker that is not forked finds it by its name."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_data_worker_that_was_killed_is_one_sentence(make_tone, make_labels, make_datafile,
                                                       monkeypatch):
    monkeypatch.setattr(norm_stats, 'FbankSums', Deadly)
    datafile = make_datafile([(make_tone('a.wav'), '/m/0')])
    said = 'error: a process that loads data died.*killed.*--num_workers'
    with pytest.raises(SystemExit, match=said):
        get_norm_stats.main(['--data_train', str(datafile), '--label_csv', str(make_labels(1)),
                             '--num_workers', '1'])
