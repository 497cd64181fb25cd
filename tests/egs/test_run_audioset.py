"""The AudioSet recipe as its users start it: their clips and an official-looking list, through to the averaged model."""
import json
import os
import shutil
import sys

import numpy as np
import pytest
import soundfile

# Real labels, of Google's list.
LABELS = ['/m/09x0r,/m/05zppz', '/m/0bt9lr', '/m/04rlf,/m/0342h', '/m/09x0r']
# A model and a schedule that take seconds.
TINY = ['--model_size', 'tiny224', '--imagenet_pretrain', 'False', '--fstride', '16', '--tstride', '16', '--num_mel_bins', '32',
        '--freqm', '8', '--audio_length', '64', '--timem', '8', '--n_epochs', '2', '--wa_start', '1', '--wa_end', '2',
        '--num_workers', '0']


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
        lines.append(f'{name}, {i}.000, {i + 10}.000, "{labels}"')
        if i % 2 == i // 4 % 2:
            tone = 0.1 * np.sin(np.arange(8000) * (0.05 + 0.1 * (i % 4)))
            soundfile.write(tmp_path / 'my audio' / (name + (f'_{i}.000.flac' if i % 3 else '.wav')), tone, 16000)
    (tmp_path / 'segments.csv').write_text('\n'.join(lines) + '\n')
    return tmp_path / 'segments.csv', tmp_path / 'my audio'


@pytest.fixture
def datafiles(tmp_path, make_tone):
    """Datafiles of three clips; returns the options that name them."""
    for name in ('train', 'val'):
        entries = [{'wav': str(make_tone(f'{name}{i}.wav', seconds=0.3)), 'labels': labels} for i, labels in enumerate(LABELS[:3])]
        (tmp_path / f'{name}.json').write_text(json.dumps({'data': entries}))
    return ['--data_train', tmp_path / 'train.json', '--data_val', tmp_path / 'val.json']


@pytest.mark.parametrize('which, published', [
    ('balanced', {'lr': 5e-5, 'bal': 'none', 'lrscheduler_start': 10, 'lrscheduler_step': 5}),
    ('full', {'lr': 1e-5, 'bal': 'bal', 'lrscheduler_start': 2, 'lrscheduler_step': 1})])
def test_clips_and_a_list_of_them_become_an_averaged_model(folder, root, run_shell, clips, tmp_path, which, published):
    segments, audio = clips
    prepared = run_shell([sys.executable, folder / 'prep_audioset.py', '--segments', segments, '--audio_dir', audio,
                          '--out', 'data/all.json'])
    assert prepared.returncode == 0 and 'listed 48, found 24 (50.0%)' in prepared.stdout, prepared.stderr
    labels = folder / 'data' / 'class_labels_indices.csv'
    checked = run_shell([sys.executable, root / 'src' / 'check_data.py', 'data/all.json', '--label_csv', labels,
                         '--segments', segments, '--json'])
    assert checked.returncode == 0 and json.loads(checked.stdout)['datafiles'][0]['samples'] == 24

    done = run_shell([folder / 'run.sh', '--set', which, '--data_train', 'data/all.json', '--data-val=data/all.json',
                      '--exp_dir', 'my results', *TINY])
    assert done.returncode == 0, done.stderr
    results = tmp_path / 'my results'
    assert np.loadtxt(results / 'result.csv', delimiter=',').shape == (2, 10)
    assert np.loadtxt(results / 'wa_result.csv').shape == (5,)
    assert (results / 'predictions' / 'cum_predictions.npy').exists() and (results / 'models' / 'audio_model_wa.pth').exists()
    options = json.loads((results / 'args.json').read_text())
    common = {'n_class': 527, 'batch_size': 12, 'mixup': 0.5, 'warmup': True, 'wa': True, 'save_model': True, 'metrics': 'mAP',
              'loss': 'BCE', 'dataset': 'audioset', 'dataset_mean': -4.2677393, 'dataset_std': 4.5689974, 'n_epochs': 2}
    assert {name: options[name] for name in [*common, *published]} == common | published
    assert (tmp_path / 'data' / 'all_weight.csv').exists() == (which == 'full')


def test_weights_are_made_where_there_are_none_or_older_ones(folder, run_shell, datafiles, tmp_path):
    weights = tmp_path / 'train_weight.csv'
    command = [folder / 'run.sh', *datafiles, '--stop_stage', '1']
    assert run_shell(command).returncode == 0 and weights.exists()
    weights.write_text('mine')
    run_shell(command)
    assert weights.read_text() == 'mine'
    os.utime(weights, (0, 0))
    run_shell(command)
    assert len(np.loadtxt(weights)) == 3
    weights.unlink()
    run_shell([*command, '--set', 'balanced'])
    assert not weights.exists()


def test_the_number_of_classes_follows_the_label_file(folder, run_shell, tmp_path, make_labels, make_datafile, make_tone):
    datafile = make_datafile([(make_tone('a.wav'), '/m/0'), (make_tone('b.wav'), '/m/2')])
    words = ['--data_train', datafile, '--data_val', datafile, '--label_csv', make_labels(3), '--exp_dir', 'exp']
    done = run_shell([folder / 'run.sh', *words, '--device', 'cuda:99'])  # where run.py stops after its options
    assert 'cuda:99' in done.stderr and '2 samples, 2 of 3 classes' in done.stdout
    assert '--n_class' not in done.stderr and not (tmp_path / 'exp').exists()


def test_without_datafiles_the_preparation_is_named(folder, run_shell, datafiles):
    done = run_shell([folder / 'run.sh', *datafiles[:2], '--data_val', 'nowhere.json'])
    assert done.returncode == 1 and 'nowhere.json does not exist' in done.stderr and 'prep_audioset.py' in done.stderr


def test_a_missing_label_file_is_named(folder, run_shell, datafiles):
    done = run_shell([folder / 'run.sh', *datafiles, '--label_csv', 'nowhere.csv'])
    assert done.returncode == 1 and 'nowhere.csv does not exist' in done.stderr


@pytest.mark.parametrize('words, reason', [(['--set', 'unbalanced'], 'full or balanced, not unbalanced'),
                                           (['--bogus', '1'], 'unknown option: --bogus')])
def test_a_wrong_option_stops_with_the_list_of_options(folder, run_shell, words, reason):
    done = run_shell([folder / 'run.sh', *words])
    assert done.returncode == 2 and reason in done.stderr and '--batch_size' in done.stderr


def test_help_lists_the_settings_of_the_full_set(folder, run_shell):
    said = ' '.join(run_shell([folder / 'run.sh', '--help']).stdout.split())
    for default in ('--set full', '--lr 1e-5', '--n_epochs 5', '--batch_size 12', '--freqm 48', '--timem 192', '--mixup 0.5',
                    '--bal bal', '--audio_length 1024', '--wa_start 1', '--wa_end 5', '--lrscheduler_start 2'):
        assert default in said


def test_submitted_with_sbatch_the_recipe_finds_its_place(folder, run_shell, datafiles, tmp_path):
    (tmp_path / 'spool').mkdir()
    shutil.copy(folder / 'run.sh', tmp_path / 'spool' / 'slurm_script')
    words = [tmp_path / 'spool' / 'slurm_script', *datafiles, '--stop_stage', '1']
    done = run_shell(words, cwd=folder, SLURM_SUBMIT_DIR=str(folder), SLURM_JOB_ID='1')
    assert done.returncode == 0 and (tmp_path / 'train_weight.csv').exists(), done.stderr
    elsewhere = run_shell(words, cwd=tmp_path, SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID='1')
    assert elsewhere.returncode and 'submit slurm_script in egs/audioset' in elsewhere.stderr
