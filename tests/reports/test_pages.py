"""The page that an experiment leaves: whole, readable without network, and right."""
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import experiment
import report
import run
from reports import pages, predictions
from reports.folds import summarise_folds
from reports.predictions import read_clips
from small_experiment import TRAINING, one_label, write_experiment
from training import environment


class Reader(HTMLParser):
    """Collects the texts and the attributes of a page, and refuses tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.attributes += attributes
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def make_experiment(tmp_path):
    """Write what a finished run leaves; returns its directory."""
    def make(targets, predictions, folder='exp', **options):
        write_experiment(tmp_path / folder, targets, predictions, **options)
        return tmp_path / folder
    return make


@pytest.fixture
def single(make_experiment):
    """Write an experiment with six clips of one label each.

    Clip 4, a cat, is most surely taken for a hen, and clip 1, a dog, for a cow.
    """
    predictions = 0.1 + 0.8 * one_label([0, 3, 1, 1, 2, 3])
    predictions[1, 3], predictions[4, 2] = 0.6, 0.95
    return make_experiment(one_label([0, 0, 1, 1, 1, 3]), predictions)


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(single):
    page = pages.run_page(single)
    sources = [value for name, value in Reader(page).attributes if name in ('src', 'href')]
    assert sources and all(source.startswith('data:image/png;base64,') for source in sources)
    assert not re.search(r'https?:|url\(|@import|<script|<link', page)


def test_the_page_holds_the_numbers_of_every_epoch(single):
    texts = Reader(pages.run_page(single)).texts
    for number in np.loadtxt(single / 'result.csv', delimiter=',').flat:
        assert f'{number:.4f}' in texts
    assert {'cum_acc', 'valid_loss', 'best epoch (2)', 'Finished: 3 of 3 epochs.'} <= set(texts)


def test_the_classes_of_a_model_with_ce_have_the_ap_of_validation(make_experiment, monkeypatch):
    monkeypatch.setattr(predictions, 'PAGE_MATRIX_CLASSES', 0)
    # By sigmoids, clip 0 is ranked first in class 0, by softmax, clip 1.
    sigmoids = torch.tensor([[0., 3, -9, -9], [-1, -5, -9, -9]]).sigmoid().numpy()
    exp_dir = make_experiment(one_label([0, 1]), sigmoids, loss='CE')
    texts = Reader(pages.run_page(exp_dir)).texts
    assert texts[texts.index('AUC') + 1:][:5].count('1.0000') == 2


def test_further_metrics_are_shown_under_the_names_that_their_file_gives_them(single):
    (single / 'metrics.csv').write_text('epoch,calibration error,F1\n'
                                        '1,0.1234,0.2345\n2,0.3456,0.4567\n3,0.5678,0.6789\n')
    page = pages.run_page(single)
    results, _, epochs = page.partition('<h2>Epochs</h2>')
    assert 'Not known' not in results
    for name in ('calibration error', 'F1'):
        assert f'>{name}</th>' in results and f'>{name}</th>' in epochs
    best, last = re.findall(r'<tr[^>]*><td>(?:best|last) epoch.*</tr>', results)
    assert '0.3456' in best and '0.4567' in best and '0.5678' in last
    for number in ('0.1234', '0.2345', '0.3456', '0.4567', '0.5678', '0.6789'):
        assert number in epochs


def test_names_and_paths_are_shown_as_they_are(make_experiment):
    names = ('<b>dog</b>', '"cat" & \'co\'', 'hen', 'cow')
    experiment = make_experiment(one_label([0, 1]), one_label([1, 0]), names=names,
                                 wav='/a "b"/<{}>&amp;.wav', dataset='<script>alert(1)</script>')
    page = pages.run_page(experiment)
    texts = Reader(page).texts
    assert {*names[:2], '/a "b"/<0>&amp;.wav'} <= set(texts)
    assert '<script>alert(1)</script>: AST tiny224' in texts
    assert '<script' not in page


def test_single_labels_show_the_confusions_and_the_surest_mistakes_with_their_paths(single):
    page = pages.run_page(single)
    Reader(page)
    assert 'title="cat taken for hen"' in page and 'title="hen taken for cat"' not in page
    mistakes = page.partition('Most confident mistakes, of 2')[2]
    assert re.findall(r'clip\d.wav', mistakes) == ['clip4.wav', 'clip1.wav']
    assert '6 clips: accuracy 0.6667' in page


def test_negatives_are_not_in_the_confusions_but_their_highest_scores_are_shown(make_experiment):
    targets = np.vstack([one_label([0, 1, 1]), np.zeros((2, 4), np.float32)])
    predictions = 0.1 + 0.8 * np.vstack([one_label([0, 1, 0]), one_label([0, 2])])
    page = pages.run_page(make_experiment(targets, predictions))
    Reader(page)
    assert '3 clips: accuracy 0.6667' in page and 'title="cat taken for dog"' in page
    assert 'taken for hen' not in page and '2 more clips are negatives' in page
    mistakes, _, absent = page.partition('2 more clips are negatives')
    assert re.findall(r'clip\d.wav', mistakes) == ['clip2.wav']
    assert '<td>clip4.wav</td><td>hen</td>' in absent
    assert not re.findall(r'clip[012].wav', absent)


def test_negatives_among_several_labels_are_counted(make_experiment):
    targets = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], np.float32)
    page = pages.run_page(make_experiment(targets, np.full((3, 4), 0.5), metrics='mAP'))
    assert '3 clips, 1 of them negatives; 1 of 4 classes have no positives.' in page
    assert 'Not known' not in page


def test_an_entry_with_a_start_is_shown_with_it(single):
    data = json.loads((single / 'val.json').read_text())
    data['data'][0]['start'] = 30
    (single / 'val.json').write_text(json.dumps(data))
    mids = [f'/m/{k}' for k in range(4)]
    targets = np.load(single / 'predictions' / 'target.npy')
    clips = read_clips(single / 'val.json', mids, targets, seconds=10)
    assert clips[0].name == 'clip0.wav from 30 s'


def test_several_labels_show_the_best_and_the_worst_classes(make_experiment):
    rng, classes = np.random.default_rng(0), 50
    targets = (rng.random((200, classes)) < 0.2).astype(np.float32)
    predictions = 0.4 * rng.random((200, classes)).astype(np.float32)
    targets[:, [8, 49]] = 0
    targets[0, 8] = 1
    predictions[:, 7], predictions[:, 8] = 0.9 * targets[:, 7], 0.3 - 0.3 * targets[:, 8]
    absent = int(np.flatnonzero(targets[:, 9] == 0)[3])
    predictions[absent, 9] = 0.8
    names = [f'class {k}' for k in range(classes)]
    page = pages.run_page(make_experiment(targets, predictions, names=names, metrics='mAP'))
    Reader(page)
    tables = page.partition('Most confident')[0].partition('Best classes')[2]
    best, worst = (re.findall(r'<td>(class \d+)</td>', part)
                   for part in tables.split('Worst classes'))
    assert (len(best), best[0], len(worst), worst[0]) == (20, 'class 7', 20, 'class 8')
    assert '1 of 50 classes have no positives' in page
    assert f'<td>clip{absent}.wav</td><td>class 9</td>' in page


@pytest.mark.parametrize('change', [lambda data: data.pop(), lambda data: data.reverse()])
def test_a_datafile_that_has_changed_lends_no_paths(single, change):
    entries = json.loads((single / 'val.json').read_text())
    change(entries['data'])
    (single / 'val.json').write_text(json.dumps(entries))
    page = pages.run_page(single)
    assert 'clip4.wav' not in page
    assert 'entry 4 of' in page and 'not found from here, or changed' in page


def test_settings_that_are_not_the_defaults_come_first(single):
    given, _, same = pages.run_page(single).partition('As run.py has them by default')
    assert '--model_size' in given and '--model_size' not in same and '--mixup' in same


@pytest.mark.parametrize('missing', [
    'result.csv', 'curves.png', 'models/best_audio_model.json', 'environment.json',
    'predictions/target.npy', 'finished', 'val.json'])
def test_what_is_missing_does_not_take_the_rest_away(single, missing):
    (single / missing).unlink(missing_ok=True)
    page = pages.run_page(single)
    Reader(page)
    assert '--model_size' in page and ('Not finished' in page) == (missing == 'finished')


def test_a_run_under_way_can_be_looked_at(single, capsys):
    (single / 'finished').unlink()
    report.main(['--exp_dir', str(single)])
    page = (single / 'report.html').read_text()
    assert 'Not finished (under way or broken off): 3 of 3 epochs.' in page


def test_a_directory_without_an_experiment_is_said(tmp_path):
    with pytest.raises(SystemExit, match='no finished fold'):
        report.main(['--exp_dir', str(tmp_path)])


def test_device_hours_count_every_gpu_and_starts_say_what_changed(single, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda number: 'GPU <X>')
    environment.record_start(single, torch.device('cuda'))
    before = torch.__version__
    monkeypatch.setattr(torch, '__version__', '99.1')
    environment.record_start(single, torch.device('cuda'))
    texts = Reader(pages.run_page(single)).texts
    assert {'8.00 (4 × cuda)', '4 × GPU <X>', '2:00:00, all starts together'} <= set(texts)
    assert f'torch {before} → 99.1' in ' '.join(texts)


def test_a_start_says_nothing_of_host_and_user(tmp_path):
    environment.record_start(tmp_path, torch.device('cpu'))
    start, = json.loads((tmp_path / 'environment.json').read_text())['starts']
    assert set(start) == {
        'time', 'command', 'device', 'devices', 'processes', 'GPUs', 'CUDA', 'CPU cores', 'platform', 'python',
        'torch', 'torchaudio', 'timm', 'numpy', 'commit', 'changed since the commit'}
    assert shlex.split(start['command']) == sys.argv
    assert start['devices'] == 1 and start['platform'].startswith(('Linux', 'macOS', 'Windows'))


def test_the_commit_is_that_of_the_code_and_not_of_a_repository_around_it(tmp_path):
    def git(*command):
        line = ['git', '-C', tmp_path, '-c', 'user.name=a', '-c', 'user.email=a@b', *command]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        return done.stdout.strip()
    assert environment.git_state(tmp_path)['commit'] is None
    git('init')
    (tmp_path / 'inner').mkdir()
    (tmp_path / 'file').write_text('a')
    git('add', 'file')
    git('commit', '-m', 'first')
    assert environment.git_state(tmp_path) == {'commit': git('rev-parse', 'HEAD'),
                                               'changed since the commit': False}
    (tmp_path / 'file').write_text('b')
    assert environment.git_state(tmp_path)['changed since the commit'] is True
    assert environment.git_state(tmp_path / 'inner')['commit'] is None


@pytest.mark.parametrize('text', ['{"lr": ', '[1]'])
def test_broken_settings_are_named(text, single):
    (single / 'args.json').write_text(text)
    reason = f'error: cannot read .*{single.name}/args.json: .'
    with pytest.raises(SystemExit, match=reason) as stop:
        report.main(['--exp_dir', str(single)])
    assert '\n' not in str(stop.value)


@pytest.mark.parametrize('missing', ['dataset', 'metrics', 'model_size', 'n_epochs'])
def test_a_setting_that_is_missing_is_named(missing, single):
    settings = json.loads((single / 'args.json').read_text())
    del settings[missing]
    (single / 'args.json').write_text(json.dumps(settings))
    reason = f"error: cannot read .*/args.json: there is no '{missing}'"
    with pytest.raises(SystemExit, match=reason):
        report.main(['--exp_dir', str(single)])


def test_a_damaged_table_of_epochs_is_named(single):
    (single / 'result.csv').write_text('')
    with pytest.raises(SystemExit, match='error: cannot read .*/result.csv: '):
        report.main(['--exp_dir', str(single)])


def test_what_an_earlier_start_did_not_note_yet_is_a_change(single):
    starts = [{'time': 'then', 'device': 'cpu', 'devices': 1},
              {'time': 'now', 'device': 'cpu', 'devices': 1, 'processes': 2}]
    (single / 'environment.json').write_text(json.dumps({'starts': starts}))
    assert 'processes None → 2' in ' '.join(Reader(pages.run_page(single)).texts)


def test_folds_have_a_page_that_leads_to_theirs(make_experiment, tmp_path):
    for fold, predicted in ((1, [1, 1]), (2, [0, 0])):
        folder = make_experiment(one_label([0, 1]), one_label(predicted), f'fold{fold}',
                                 wav=f'fold{fold}-{{}}.wav')
        (folder / 'report.html').touch()
    summarise_folds(tmp_path)
    page = (tmp_path / 'report.html').read_text()
    read = Reader(page)
    links = [value for name, value in read.attributes if name == 'href']
    assert links == ['fold1/report.html', 'fold2/report.html']
    assert {'fold1-0.wav', 'fold2-1.wav', '4:00:00 in all'} <= set(read.texts)
    assert '4 clips: accuracy 0.5000' in page and 'src="data:image/png' in page
    (tmp_path / 'report.html').unlink()
    report.main(['--exp_dir', str(tmp_path)])
    assert (tmp_path / 'report.html').exists()


def test_a_report_of_folds_is_not_made_of_a_summary_of_fewer(make_experiment, tmp_path):
    for fold in (1, 2):
        make_experiment(one_label([0, 1]), one_label([1, 1]), f'fold{fold}')
    summarise_folds(tmp_path)
    make_experiment(one_label([0, 1]), one_label([1, 1]), 'fold3')
    rows = np.loadtxt(tmp_path / 'fold3' / 'result.csv', delimiter=',')
    np.savetxt(tmp_path / 'fold3' / 'result.csv', rows + 0.01, delimiter=',')
    reason = 'result.csv is not the mean of the 3 folds that are finished: run summarise_folds.py'
    with pytest.raises(SystemExit, match=reason):
        report.main(['--exp_dir', str(tmp_path)])
    assert '2 folds' in (tmp_path / 'report.html').read_text()
    summarise_folds(tmp_path)
    report.main(['--exp_dir', str(tmp_path)])
    assert '3 folds' in (tmp_path / 'report.html').read_text()
    (tmp_path / 'result.csv').unlink()
    with pytest.raises(SystemExit, match=reason):
        report.main(['--exp_dir', str(tmp_path)])


@pytest.fixture
def start(tmp_path, monkeypatch, make_tone, make_labels, make_datafile):
    """Train for one epoch on four recordings, in this process; return exp_dir."""
    monkeypatch.chdir(tmp_path)
    make_labels(2)
    make_datafile([(make_tone(f'{i}.wav', 400 * (1 + i % 2), seconds=0.4), f'/m/{i % 2}')
                   for i in range(4)])

    def train(*options):
        run.main([*TRAINING, *options])
        return tmp_path / 'exp'
    return train


def test_a_run_leaves_its_report_and_counts_its_starts(start):
    (start() / 'finished').unlink()
    exp_dir = start()
    assert len(json.loads((exp_dir / 'environment.json').read_text())['starts']) == 2
    assert 'Finished: 1 of 1 epochs.' in Reader((exp_dir / 'report.html').read_text()).texts
    start('--resume', 'none')
    assert len(json.loads((exp_dir / 'environment.json').read_text())['starts']) == 1


def test_a_report_that_fails_does_not_fail_the_run(start, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError('no page today')
    monkeypatch.setattr(experiment, 'run_page', fail)
    monkeypatch.setattr('training.folder.record_start', fail)
    exp_dir = start()
    assert (exp_dir / 'finished').exists() and not (exp_dir / 'report.html').exists()
    assert 'report.html was not written: RuntimeError: no page today' in capsys.readouterr().err
