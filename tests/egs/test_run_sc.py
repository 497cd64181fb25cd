"""The Speech Commands recipe as its users start it: five synthetic words in the official layout, learnt and tested."""
import json
import shutil

import numpy as np
import pytest
import soundfile

# Two formants (Hz) at the beginning and at the end of a word, all below 4 kHz, for clips of 8 kHz.
WORDS = {'yes': ((300, 2800), (300, 2800)), 'no': ((500, 900), (350, 700)), 'up': ((800, 1300), (800, 1300)),
         'stop': ((3300, 3300), (600, 1000)), 'go': ((300, 1800), (1800, 3200))}
FORMANT_WIDTH = 250  # Hz
HIGHEST = 3900  # Hz
# Clips of each word in the training set and in the two lists.
CLIPS = {'train': 24, 'validation_list.txt': 8, 'testing_list.txt': 8}
# A model from scratch and a schedule that learn them in seconds.
TINY = {'model_size': 'tiny224', 'imagenet_pretrain': False, 'fstride': 16, 'tstride': 16, 'num_mel_bins': 64,
        'audio_length': 64, 'freqm': 4, 'timem': 4, 'mixup': 0.1, 'batch_size': 4, 'lr': 2e-4, 'n_epochs': 6,
        'dataset_mean': -4.5, 'dataset_std': 4.0, 'num_workers': 0}


@pytest.fixture
def recipe(root):
    return root / 'egs' / 'speechcommands' / 'run_sc.sh'


def speak(rng, word, rate):
    """One utterance of a word, (samples,): a voice of some pitch and loudness whose formants glide, in a soft noise."""
    part = np.linspace(0, 1, int(rng.uniform(0.5, 0.6) * rate))
    formants = [rng.uniform(0.95, 1.05) * (first + (last - first) * part) for first, last in zip(*WORDS[word])]
    pitch = rng.uniform(100, 200)
    samples = 0.01 * rng.standard_normal(len(part))
    for hertz in np.arange(pitch, HIGHEST, pitch):
        loudness = sum(np.exp(-((hertz - formant) / FORMANT_WIDTH) ** 2) for formant in formants)
        samples += 0.1 * loudness * np.sin(2 * np.pi * hertz * np.arange(len(part)) / rate + rng.uniform(0, 2 * np.pi))
    return rng.uniform(0.2, 0.8) * samples


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    """A dataset in Speech Commands' layout, every third clip of it in 8 kHz; returns its folder."""
    folder = tmp_path_factory.mktemp('speech')
    rng = np.random.default_rng(0)
    lists = {name: '' for name in CLIPS}
    for word in WORDS:
        (folder / word).mkdir()
        for i, name in enumerate(name for name, clips in CLIPS.items() for _ in range(clips)):
            rate = 16000 if i % 3 else 8000
            soundfile.write(folder / word / f'{i:08x}_nohash_0.wav', speak(rng, word, rate), rate)
            lists[name] += f'{word}/{i:08x}_nohash_0.wav\n'
    for name in ('validation_list.txt', 'testing_list.txt'):
        (folder / name).write_text(lists[name])
    return folder


def test_five_words_are_learnt_and_recognised_on_the_test_list(recipe, run_shell, words, tmp_path):
    command = [recipe, '--data_dir', words, '--prep-dir', 'prepared data', '--exp_dir=my results',
               *(f'--{name}={value}' for name, value in TINY.items())]
    done = run_shell(command)
    assert done.returncode == 0, done.stderr
    results = tmp_path / 'my results'
    validation_accuracy, _, test_accuracy, test_auc = np.loadtxt(results / 'eval_result.csv')
    assert test_accuracy > 0.9 and validation_accuracy > 0.9 and test_auc > 0.9
    assert done.stdout.splitlines()[-1].split() == ['test', 'acc', f'{test_accuracy:.10g},', 'mAUC', f'{test_auc:.10g}']
    assert np.loadtxt(results / 'result.csv', delimiter=',').shape == (TINY['n_epochs'], 10)
    assert (results / 'models' / f'audio_model.{TINY["n_epochs"]}.pth').exists()
    options = json.loads((results / 'args.json').read_text())
    asked = {**TINY, 'dataset': 'speechcommands', 'n_class': 35, 'loss': 'BCE', 'metrics': 'acc', 'noise': True,
             'audioset_pretrain': False, 'warmup': False, 'wa': False, 'bal': 'none', 'lrscheduler_step': 1}
    assert {name: options[name] for name in asked} == asked
    again = run_shell(command)
    assert again.returncode == 0 and 'is prepared already' in again.stdout and 'is finished already' in again.stderr
    assert again.stdout.splitlines()[-2:] == done.stdout.splitlines()[-2:]


def test_the_defaults_are_the_published_settings(recipe, shown_defaults):
    published = {'model_size': 'base384', 'imagenet_pretrain': 'True', 'audioset_pretrain': 'False',
                 'lr': '2.5e-4', 'n_epochs': '30', 'batch_size': '128', 'freqm': '48', 'timem': '48',
                 'mixup': '0.6', 'bal': 'none', 'noise': 'True', 'dataset_mean': '-6.845978',
                 'dataset_std': '5.5654526', 'audio_length': '128', 'metrics': 'acc', 'loss': 'BCE',
                 'warmup': 'False', 'lrscheduler_start': '5', 'lrscheduler_step': '1',
                 'lrscheduler_decay': '0.85', 'wa': 'False', 'save_model': 'True'}
    shown = shown_defaults(recipe)
    assert {name: shown[name] for name in published} == published


def test_submitted_with_sbatch_the_recipe_finds_its_place(recipe, run_shell, tmp_path):
    (tmp_path / 'spool').mkdir()
    job = [shutil.copy(recipe, tmp_path / 'spool' / 'slurm_script'), '--stop_stage', '0']
    done = run_shell(job, cwd=recipe.parent, SLURM_SUBMIT_DIR=str(recipe.parent), SLURM_JOB_ID='1')
    assert done.returncode == 0, done.stderr
    elsewhere = run_shell(job, SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID='1')
    assert elsewhere.returncode and 'submit run_sc.sh in egs/speechcommands' in elsewhere.stderr


def test_more_than_the_recordings_hold_is_refused(recipe, run_shell, tmp_path):
    done = run_shell([recipe, '--sample_rate', '32000'])
    assert done.returncode == 2 and 'a higher rate would add nothing' in done.stderr
    assert not any(tmp_path.iterdir())
