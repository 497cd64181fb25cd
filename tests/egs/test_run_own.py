"""The recipe for one's own dataset as its users start it: from folders or a CSV to a summary."""
import json
import re

import numpy as np
import pytest
import soundfile

import own_dataset
from audio.fbank import fbank
from audio.reading import load_waveform
from own_clips import SplitConf

# A model that takes seconds; what follows from the data is left to the recipe.
TINY = ['--model_size', 'tiny224', '--imagenet_pretrain', 'False', '--audioset_pretrain', 'False',
        '--fstride', '16', '--tstride', '16', '--num_mel_bins', '32', '--lr', '5e-4',
        '--batch_size', '4', '--num_workers', '0']


@pytest.fixture
def recipe(root):
    return root / 'egs' / 'own_dataset' / 'run_own.sh'


@pytest.fixture
def make_sounds(tmp_path):
    """Write clips of 0.4 s below a folder, a hum or a hiss each; returns the folder."""
    def make(name, kinds, path):
        rng = np.random.default_rng(0)
        t = np.arange(6400) / 16000
        for i, kind in enumerate(kinds):
            sound = {'hum': np.sin(2 * np.pi * 150 * t), 'hiss': rng.standard_normal(6400)}
            samples = sum(sound[one] for one in kind.split('+')) + 0.01 * rng.standard_normal(6400)
            file = tmp_path / name / path(i, kind)
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, 0.1 * samples, 16000)
        return tmp_path / name
    return make


@pytest.fixture
def make_tree(make_sounds):
    """A folder with the folders hum and hiss, twelve clips in each."""
    return lambda: make_sounds('my sounds', ['hum', 'hiss'] * 12, lambda i, kind: f'{kind}/{i}.wav')


@pytest.fixture
def prepared(make_tree, tmp_path):
    """Prepare such a folder in `prep`, as stage 1 would.

    Returns the words of the options that say where things are.
    """
    def prepare(**conf):
        own_dataset.prepare(make_tree(), tmp_path / 'prep', SplitConf(**conf))
        return ['--data', 'my sounds', '--prep_dir', 'prep', '--exp_dir', 'exp']
    return prepare


def options(exp_dir):
    return json.loads((exp_dir / 'args.json').read_text())


def statistics(datafile, num_mel_bins, frames):
    """Mean and standard deviation of all fbanks of a datafile at once."""
    wavs = [entry['wav'] for entry in json.loads(datafile.read_text())['data']]
    values = np.concatenate([fbank(load_waveform(wav), num_mel_bins)[:frames].double().numpy()
                             for wav in wavs])
    return values.mean(), values.std()


def test_a_folder_a_class_is_trained_on_and_summarised(recipe, run_shell, make_tree, tmp_path):
    make_tree()
    words = [recipe, '--data', 'my sounds', '--prep_dir', 'prep', '--exp-dir=my results',
             '--test_share', '0.25', *TINY, '--n_epochs', '2']
    done = run_shell(words)
    assert done.returncode == 0, done.stderr
    results = tmp_path / 'my results'
    best = np.loadtxt(results / 'result.csv', delimiter=',')[:, 0].max()
    assert f'the best: acc {best:.4f}' in done.stdout and '  test       acc' in done.stdout
    assert np.loadtxt(results / 'eval_result.csv').shape == (4,)
    chosen = {'n_class': 2, 'loss': 'CE', 'metrics': 'acc', 'audio_length': 40, 'timem': 8,
              'freqm': 12, 'mixup': 0, 'dataset': 'my sounds'}
    assert {name: options(results)[name] for name in chosen} == chosen
    mean, std = statistics(tmp_path / 'prep' / 'datafiles' / 'train_data.json', 32, 40)
    assert options(results)['dataset_mean'] == pytest.approx(mean, abs=1e-4)
    assert options(results)['dataset_std'] == pytest.approx(std, abs=1e-4)
    again = run_shell(words)
    assert again.returncode == 0 and 'prepared already' in again.stdout
    assert 'is finished already' in again.stderr
    assert 'fbank statistics' not in again.stderr


def test_a_table_with_folds_is_cross_validated_as_the_user_says(recipe, run_shell, make_sounds,
                                                                tmp_path):
    kinds = ['hum', 'hiss', 'hum+hiss'] * 4  # several labels: from the data, BCE and mAP
    data = make_sounds('data', kinds, lambda i, kind: f'{i}.wav')
    rows = (f'{i}.wav,{kind.replace("+", ";")},{(10, 2)[i % 2]}' for i, kind in enumerate(kinds))
    (data / 'list.csv').write_text('\n'.join(['path,labels,fold', *rows]))
    done = run_shell([
        recipe, '--data', data / 'list.csv', '--prep_dir', 'prep', '--exp_dir', 'exp', *TINY,
        '--n_epochs', '1', '--audio_length', '24', '--freqm', '0', '--dataset_mean', '-4.5',
        '--seed', '3'])
    assert done.returncode == 0, done.stderr
    assert "folds: 1 evaluates '2', 2 evaluates '10'" in done.stderr

    said = {'audio_length': 24, 'freqm': 0, 'dataset_mean': -4.5, 'seed': 3}
    # timem is a fifth of the length that the user wants.
    of_data = {'loss': 'BCE', 'metrics': 'mAP', 'n_class': 2, 'timem': 4}
    for fold in (1, 2):
        chosen = options(tmp_path / 'exp' / f'fold{fold}')
        assert {name: chosen[name] for name in said | of_data} == said | of_data
        datafile = tmp_path / 'prep' / 'datafiles' / f'train_data_{fold}.json'
        assert chosen['dataset_std'] == pytest.approx(statistics(datafile, 32, 24)[1], abs=1e-4)
    assert 'epoch 1, the best of the mean: mean mAP' in done.stdout
    assert np.loadtxt(tmp_path / 'exp' / 'acc_fold.csv').shape == (3,)


def test_only_the_fold_that_the_user_names_is_run_and_with_his_loss(recipe, run_shell, prepared,
                                                                    tmp_path):
    done = run_shell([recipe, *prepared(n_folds=3), '--stage', '2', '--stop_stage', '3',
                      '--folds', '2', *TINY, '--n_epochs', '1', '--loss', 'BCE', '--metrics',
                      'mAP'])
    assert done.returncode == 0, done.stderr
    made = [path.name for path in (tmp_path / 'prep' / 'datafiles').glob('*_stats*')]
    assert made == ['train_data_2_stats_32x40.txt']
    assert [path.name for path in (tmp_path / 'exp').iterdir()] == ['fold2']
    chosen = options(tmp_path / 'exp' / 'fold2')
    # Of the data alone they would be CE and acc: each clip has one label.
    assert (chosen['loss'], chosen['metrics'], chosen['n_class']) == ('BCE', 'mAP', 2)


def test_trainings_with_and_without_folds_do_not_share_a_folder(recipe, run_shell, prepared,
                                                                tmp_path):
    words = [recipe, *prepared(n_folds=3), '--stage', '3', '--dataset_mean', '-7',
             '--dataset_std', '2']
    (tmp_path / 'exp').mkdir()
    (tmp_path / 'exp' / 'args.json').touch()
    done = run_shell(words)
    assert done.returncode == 1
    assert 'exp holds a training without folds: give another --exp_dir' in done.stderr
    (tmp_path / 'exp' / 'args.json').unlink()
    (tmp_path / 'exp' / 'fold7').mkdir()
    done = run_shell(words)
    assert done.returncode == 1 and 'exp/fold7 is of other data: those in prep have' in done.stderr


def test_given_statistics_are_not_computed_again(recipe, run_shell, prepared, tmp_path):
    done = run_shell([recipe, *prepared(), '--stage', '2', '--stop_stage', '2', '--dataset_mean',
                      '-7', '--dataset_std', '2'])
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / 'prep' / 'datafiles').glob('*_stats*'))


@pytest.mark.parametrize('recipe_name', ['published', 'modern'])
def test_the_recipe_says_its_settings_and_the_users_come_first(recipe, recipe_name, run_shell, prepared,
                                                               tmp_path):
    done = run_shell([recipe, *prepared(), '--stage', '2', '--recipe', recipe_name, *TINY,
                      '--n_epochs', '2', '--dataset_mean', '-7', '--dataset_std', '2',
                      '--label_smoothing', '0.2', '--dry_run'])
    assert done.returncode == 0, done.stderr
    assert f'recipe: {recipe_name}' in done.stdout
    settings = re.search(r'settings: (.*)', done.stderr)[1]
    assert '--label_smoothing 0.2' in settings and '--lr 0.0005' in settings
    for setting in ('--optim adamw', '--freqm 0 '):
        assert (setting in settings) == (recipe_name == 'modern')


@pytest.mark.parametrize('words, reason', [
    ([], '--data is needed'),
    (['--recipe', 'best'], '--recipe must be published or modern, got best'),
    (['--data', 'x', '--group', '1'], 'unrecognized arguments: --group'),
])
def test_a_wrong_option_is_one_sentence(recipe, run_shell, words, reason):
    done = run_shell([recipe, *words])
    [sentence] = done.stderr.splitlines()
    assert done.returncode == 2 and reason in sentence and '--help lists the options' in sentence


@pytest.mark.parametrize('words, reason', [
    (['--folds', '1'], 'are not in folds'),
    (['--audio_length', 'a[$(touch gotcha)]'], '--audio_length: expected a whole number'),
    ([], 'run stage 2'),
])
def test_an_option_that_does_not_go_with_the_data_is_refused(recipe, run_shell, prepared, tmp_path,
                                                             words, reason):
    done = run_shell([recipe, *prepared(), '--stage', '3', *words])
    assert done.returncode and reason in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'gotcha').exists() and not (tmp_path / 'exp').exists()


def test_a_stage_that_needs_prepared_data_says_so(recipe, run_shell):
    done = run_shell([recipe, '--data', 'sounds', '--prep_dir', 'prep', '--stage', '2'])
    assert done.returncode == 1 and 'prep is not prepared: run stage 1' in done.stderr


def test_statistics_of_another_rate_are_of_their_own_and_kept_apart(recipe, run_shell, prepared,
                                                                    tmp_path):
    words = [recipe, *prepared(), '--stage', '2', '--stop_stage', '2', *TINY]
    for rate in (), ('--sample_rate', '8000'):
        done = run_shell([*words, *rate])
        assert done.returncode == 0, done.stderr
    folder = tmp_path / 'prep' / 'datafiles'
    of_16000, of_8000 = ((folder / f'train_data_stats_32x40{end}.txt').read_text()
                         for end in ('', '_8000Hz'))
    wavs = [entry['wav'] for entry in json.loads((folder / 'train_data.json').read_text())['data']]
    values = np.concatenate([fbank(load_waveform(wav, 8000), 32, 8000)[:40].double().numpy()
                             for wav in wavs])
    assert float(of_8000.split()[1]) == pytest.approx(values.mean(), abs=1e-4)
    assert of_16000 != of_8000
