"""The AudioSet recipe as its users start it: their clips and an official-looking list become an averaged model."""
import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile

import audioset
from checks.datafiles import check
from utilities.labels import read_labels

# Real labels, of Google's list.
LABELS = ['/m/09x0r,/m/05zppz', '/m/0bt9lr', '/m/04rlf,/m/0342h', '/m/09x0r']
# A model and a schedule that take seconds.
TINY = ['--model_size', 'tiny224', '--imagenet_pretrain', 'False', '--fstride', '16', '--tstride', '16',
        '--num_mel_bins', '32', '--freqm', '8', '--audio_length', '64', '--timem', '8', '--n_epochs', '2',
        '--wa_start', '1', '--wa_end', '2', '--num_workers', '0']
# What both sets have in common, and TINY has not changed.
COMMON = {'n_class': 527, 'batch_size': 12, 'mixup': 0.5, 'warmup': True, 'wa': True, 'save_model': True,
          'metrics': 'mAP', 'loss': 'BCE', 'dataset': 'audioset', 'dataset_mean': -4.2677393,
          'dataset_std': 4.5689974, 'n_epochs': 2}


@pytest.fixture
def folder(root):
    return root / 'egs' / 'audioset'


@pytest.fixture
def clips(tmp_path):
    """24 clips of half a second named by their ids, and a list of twice as many; returns the list and the folder."""
    (tmp_path / 'my audio').mkdir()
    lines = ['# Segments csv', '# num_ytids=48', '# YTID, start_seconds, end_seconds, positive_labels']
    for i in range(48):
        name, labels = f'-Y_clip{i:04d}', LABELS[i % len(LABELS)]
        lines.append(f'{name}, {i}.000, {i}.500, "{labels}"')
        if i % 2 == i // 4 % 2:
            tone = 0.1 * np.sin(np.arange(8000) * (0.05 + 0.1 * (i % 4)))
            soundfile.write(tmp_path / 'my audio' / (name + (f'_{i}.000.flac' if i % 3 else '.wav')), tone, 16000)
    (tmp_path / 'segments.csv').write_text('\n'.join(lines) + '\n')
    return tmp_path / 'segments.csv', tmp_path / 'my audio'


@pytest.fixture
def datafiles(make_datafile):
    """Options that name two datafiles."""
    return ['--data_train', make_datafile([('a.wav', LABELS[0])], 'train.json'),
            '--data_val', make_datafile([('b.wav', LABELS[0])], 'val.json')]


@pytest.fixture
def plan(folder, planned):
    """Return the programs that the recipe would run, a line each."""
    return lambda *words, script=folder / 'run.sh', **more: planned(script, *words, **more)


def test_clips_and_a_list_become_an_averaged_model(folder, run_shell, clips, tmp_path):
    (segments, audio), labels = clips, folder / 'data' / 'class_labels_indices.csv'
    datafile = tmp_path / 'data' / 'all.json'
    audioset.prepare([segments], audio, datafile, flac_dir=None, label_csv=labels)
    checked = check([datafile], read_labels(labels), audio_length=64)
    assert checked['would_train'] and checked['datafiles'][0]['samples'] == 24

    done = run_shell([folder / 'run.sh', '--data_train', 'data/all.json', '--data-val=data/all.json', '--exp_dir',
                      'my results', *TINY])
    assert done.returncode == 0, done.stderr
    results = tmp_path / 'my results'
    assert np.loadtxt(results / 'result.csv', delimiter=',').shape == (2, 10)
    assert np.loadtxt(results / 'wa_result.csv').shape == (5,)
    assert (results / 'predictions' / 'cum_predictions.npy').exists()
    assert (results / 'models' / 'audio_model_wa.pth').exists()
    options = json.loads((results / 'args.json').read_text())
    published = {**COMMON, 'lr': 1e-5, 'bal': 'bal', 'lrscheduler_start': 2, 'lrscheduler_step': 1}
    assert {name: options[name] for name in published} == published
    assert (tmp_path / 'data' / 'all_weight.csv').exists()


def test_the_balanced_set_is_trained_on_with_its_published_settings(plan, datafiles):
    said = plan('--set', 'balanced', *datafiles, *TINY)
    published = {**COMMON, 'lr': '5e-5', 'bal': 'none', 'lrscheduler_start': 10, 'lrscheduler_step': 5}
    [training] = [line for line in said.splitlines() if '/src/run.py ' in line]
    assert 'gen_weight_file.py' not in said
    for name, value in published.items():
        assert re.search(f'--{name}[= ]{value}( |$)', training), name


def test_weights_are_made_where_there_are_none_or_older_ones(plan, datafiles, tmp_path):
    weights = tmp_path / 'train_weight.csv'
    assert 'gen_weight_file.py' in plan(*datafiles)
    weights.write_text('mine')
    assert 'gen_weight_file.py' not in plan(*datafiles)
    os.utime(weights, (0, 0))
    assert 'gen_weight_file.py' in plan(*datafiles)
    assert 'gen_weight_file.py' not in plan(*datafiles, '--set', 'balanced')
    assert 'gen_weight_file.py' in plan(*datafiles, '--set', 'balanced', '--bal', 'bal')
    assert 'gen_weight_file.py' not in plan(*datafiles, '--stage', '2')


def test_the_number_of_classes_follows_the_label_file(plan, datafiles, make_labels):
    assert '--n_class 527\n' in plan(*datafiles)
    assert '--n_class 3\n' in plan(*datafiles, '--label_csv', make_labels(3))


def test_what_the_user_says_goes_before_what_the_set_says(plan, datafiles):
    said = plan('--lr', '1e-3', *datafiles, '--set', 'balanced', '--wa_end=20')
    for option in ('--lr=1e-3 ', '--wa_end=20 ', '--wa_start=6 ', '--n_epochs=25 '):
        assert option in said


def test_of_two_values_of_an_option_the_last_counts_under_any_of_its_names(plan, datafiles):
    said = plan(*datafiles, '--lr', '1e-3', '--n-epochs=7', '-b', '6', '--learning-rate', '2.50e-4', '--n_epochs', '3')
    for option in ('--lr=2.50e-4 ', '--batch_size=6 ', '--n_epochs=3 '):
        assert said.count(option) == 1 and said.count(option.split('=')[0] + '=') == 1
    assert '/exp/audioset-full-base384-f10-t10-imagenet-b6-lr2.50e-4-seed0 ' in said


def test_a_job_that_was_queued_again_goes_on_whatever_it_began_with(plan, datafiles):
    assert plan(*datafiles, '--resume', 'none', SLURM_RESTART_COUNT='1').count('--resume') == 2
    said = plan(*datafiles, '--resume', 'none', SLURM_RESTART_COUNT='1')
    assert said.index('--resume=none') < said.index('--resume auto')


def test_the_two_sets_have_results_of_their_own(plan, datafiles):
    folders = {word for which in ('full', 'balanced')
               for word in plan(*datafiles, '--set', which, '--lr', '1').split() if '/exp/' in word}
    assert len(folders) == 2


def test_without_datafiles_the_preparation_is_named(folder, run_shell, datafiles):
    done = run_shell([folder / 'run.sh', *datafiles[:2], '--data_val', 'nowhere.json'])
    assert done.returncode == 1 and 'nowhere.json does not exist' in done.stderr and 'prep_audioset.py' in done.stderr


def test_a_missing_label_file_is_named(folder, run_shell, datafiles):
    done = run_shell([folder / 'run.sh', *datafiles, '--label_csv', 'nowhere.csv'])
    assert done.returncode == 1 and 'nowhere.csv does not exist' in done.stderr


@pytest.mark.parametrize('words, reason', [(['--set', 'unbalanced'], 'full or balanced, not unbalanced'),
                                           (['--bogus', '1'], 'unrecognized arguments: --bogus'),
                                           (['--te_data', 'a.json'], '--te_data is called --data_val here')])
def test_a_wrong_option_is_one_sentence(folder, run_shell, words, reason):
    done = run_shell([folder / 'run.sh', *words])
    [sentence] = done.stderr.splitlines()
    assert done.returncode == 2 and reason in sentence


def test_help_lists_the_settings_of_the_full_set(folder, shown_defaults):
    published = {'set': 'full', 'lr': '1e-5', 'n_epochs': '5', 'batch_size': '12', 'freqm': '48',
                 'timem': '192', 'mixup': '0.5', 'bal': 'bal', 'audio_length': '1024',
                 'wa': 'True', 'wa_start': '1', 'wa_end': '5', 'lrscheduler_start': '2',
                 'lrscheduler_step': '1', 'lrscheduler_decay': '0.5', 'warmup': 'True',
                 'save_model': 'True', 'metrics': 'mAP', 'loss': 'BCE'}
    shown = shown_defaults(folder / 'run.sh')
    assert {name: shown[name] for name in published} == published


def test_submitted_with_sbatch_the_recipe_finds_its_place(folder, plan, run_shell, datafiles, tmp_path):
    (tmp_path / 'spool').mkdir()
    script = shutil.copy(folder / 'run.sh', tmp_path / 'spool' / 'slurm_script')
    said = plan(*datafiles, script=script, cwd=folder, SLURM_SUBMIT_DIR=str(folder), SLURM_JOB_ID='1')
    assert f'{folder}/gen_weight_file.py' in said and f'{folder}/exp/' in said
    elsewhere = run_shell([script, *datafiles], SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID='1')
    assert elsewhere.returncode and 'submit run.sh in egs/audioset' in elsewhere.stderr
