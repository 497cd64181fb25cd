"""The page that compares experiments: right numbers, axes that go together, a sentence for what is missing."""
import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import report
from browser import DESKTOP, PHONE
from reports import comparison_page
from reports.comparison_data import short_names
from test_pages import TRAINING, Reader
from training.options import make_parser
from training.result_files import write_rows
from utilities.errors import DataError
from utilities.plots import CURVE_STYLES, plot_comparison, png_of

EPOCHS = 3


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write what a run leaves into a folder of the working directory; return its path from there."""
    monkeypatch.chdir(tmp_path)

    def write(name, scores=(0.5, 0.9, 0.7), finished=True, left_out=(), **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = np.arange(10 * len(scores)).reshape(len(scores), 10) / 100
        rows[:, 0], rows[:, 7] = scores, np.array(scores) + 0.001
        write_rows(folder / 'result.csv', rows)
        args = vars(make_parser().parse_args(TRAINING)) | {'metrics': 'acc', 'n_epochs': EPOCHS, 'exp_dir': name}
        args |= settings
        (folder / 'args.json').write_text(json.dumps({key: args[key] for key in args if key not in left_out}))
        (folder / 'environment.json').write_text('{"starts": [{"device": "cpu"}]}')
        if finished:
            (folder / 'finished').write_text('{"seconds": 3600}')
        return name
    return write


@pytest.fixture
def show(tmp_path):
    """Compare experiments on a page; return its HTML and the cells of its tables, {heading: rows}."""
    def write(*names):
        report.main(['--compare', *names, '--out', 'page.html'])
        page = (tmp_path / 'page.html').read_text()
        Reader(page)
        tables = {}
        for part in page.split('<h2>')[1:]:
            rows = [[re.sub('<.*?>', '', cell) for cell in re.findall(r'<t[dh].*?>(.*?)</t[dh]>', row)]
                    for row in re.findall('<tr.*?>(.*?)</tr>', part)]
            tables[part.split('</h2>')[0]] = rows
        return page, tables
    return write


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last figure, {title: {name: values}}."""
    drawn = {}

    def plot(shown, names):
        drawn.update(shown)
        return plot_comparison(shown, names)
    monkeypatch.setattr(comparison_page, 'plot_comparison', plot)
    return drawn


def test_the_page_has_the_curves_the_scores_and_the_settings_that_differ(make, show, panels):
    make('exp/slow', scores=(0.1, 0.2, 0.3), lr=1e-5)
    make('exp/fast', lr=1e-4, mixup=0.5)
    page, tables = show('exp/slow', 'exp/fast')
    assert list(panels) == ['accuracy', 'validation loss', 'training loss', 'learning rate']
    assert list(panels['accuracy']) == ['slow', 'fast']
    assert panels['accuracy']['fast'].tolist() == [0.5, 0.9, 0.7]
    assert tables['Scores'] == [
        ['', 'epochs', 'best epoch', 'its accuracy', 'last epoch', 'ensemble', 'time', 'device'],
        ['slow', '3 of 3', '3', '0.3000', '0.3000', '0.3010', '1:00:00', 'cpu'],
        ['fast', '3 of 3', '2', '0.9000', '0.7000', '0.7010', '1:00:00', 'cpu']]
    assert tables['Settings in which they differ'] == [
        ['', 'slow', 'fast'], ['--mixup', '0', '0.5'], ['--lr', '1e-05', '0.0001']]
    assert '<tr class=marked><td>fast' in page and '<tr class=marked><td>slow' not in page


def test_the_page_asks_the_network_for_nothing_and_holds_its_picture(make, show):
    page, _ = show(make('a'), make('b'))
    [picture] = re.findall('src="data:image/png;base64,(.*?)"', page)
    assert base64.b64decode(picture).startswith(b'\x89PNG')
    assert not re.search(r'https?:|url\(|@import|<script|<link', page)


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_a_browser_shows_the_page_and_its_links_lead_to_the_reports(tabs, make, show, tmp_path,
                                                                    size):
    for name in ('exp/slow', 'exp/fast'):
        make(name, lr=1e-5 if name == 'exp/slow' else 1e-4)
        (tmp_path / name / 'report.html').write_text(f'<title>{name}</title>')
    show('exp/slow', 'exp/fast')
    tab = tabs.open(tmp_path / 'page.html', size)
    assert tab.locator('img').evaluate('picture => picture.naturalWidth') > 500
    assert tab.evaluate('document.documentElement.scrollWidth <= innerWidth')
    tab.get_by_role('link', name='fast').click()
    assert tab.title() == 'exp/fast' and not tabs.errors


def test_averaged_models_and_test_sets_are_shown_if_one_experiment_has_them(make, show, tmp_path):
    make('with', metrics='mAP')
    make('without', metrics='mAP')
    write_rows(tmp_path / 'with' / 'wa_result.csv', [0.4593, 0.9, 0.1, 0.1, 2])
    write_rows(tmp_path / 'with' / 'eval_result.csv', [0.1, 0.2, 0.8125, 0.4])
    _, tables = show('with', 'without')
    header, *rows = tables['Scores']
    cells = [dict(zip(header, row)) for row in rows]
    assert [row['averaged, mAP'] for row in cells] == ['0.4593', '–']
    assert [row['test set'] for row in cells] == ['0.8125', '–']


def test_an_option_that_only_one_version_has_shows_its_default(make, show):
    make('old', left_out=['freq_patchout', 'time_patchout'])
    make('new', time_patchout=40)
    make('other', of_another_version=0.75)
    _, tables = show('old', 'new', 'other')
    assert tables['Settings in which they differ'][1:] == [
        ['--time_patchout', '0', '40', '0'], ['--of_another_version', '–', '–', '0.75']]


def test_experiments_with_the_same_settings_say_so(make, show):
    make('a', exp_dir='x', resume='none', force=True)
    page, tables = show('a', make('b'))
    assert tables['Settings in which they differ'] == [] and 'There are none.' in page


def test_folds_are_their_mean(make, show, panels):
    for k, scores in enumerate(([0.2, 0.6, 0.4], [0.4, 0.8, 0.2]), 1):
        make(f'cv/fold{k}', scores=scores, data_val=f'val{k}.json', dataset_mean=-k)
    page, tables = show('cv', make('single'))
    assert panels['accuracy']['cv'] == pytest.approx([0.3, 0.7, 0.3])
    assert tables['Scores'][1] == ['cv', '3 of 3', '2', '0.7000 ± 0.1000', '0.3000', '0.3010', '2:00:00', 'cpu']
    assert ['--data_val', 'different in each fold', 'data.json'] in tables['Settings in which they differ']
    assert 'cv is the mean of 2 folds.' in page and 'their paths or' in page


def test_folds_that_are_not_finished_are_left_out_and_said(make, show):
    for k in (1, 2, 3):
        make(f'cv/fold{k}', finished=k != 2)
    page, _ = show('cv')
    assert 'cv is the mean of the 2 finished of 3 folds.' in page


@pytest.mark.parametrize('folds', [2, 3])
def test_means_over_different_folds_are_not_ranked(make, show, folds):
    for name, count in (('all', 3), ('some', folds)):
        for k in range(1, count + 1):
            make(f'{name}/fold{k}', data_val=f'val{k}.json')
    page, _ = show('all', 'some')
    assert ('their paths or their folds differ' in page) == (folds == 2)
    assert ('<tr class=marked>' in page) == (folds == 3)


def test_different_metrics_and_losses_have_axes_and_tables_of_their_own(make, show, panels):
    make('one', loss='CE', dataset='esc50')
    make('many', metrics='mAP', loss='BCE', dataset='audioset')
    page, tables = show('one', 'many')
    assert {title: list(curves) for title, curves in panels.items()} == {
        'accuracy': ['one'], 'mAP': ['many'], 'validation loss (CE)': ['one'], 'validation loss (BCE)': ['many'],
        'training loss (CE)': ['one'], 'training loss (BCE)': ['many'], 'learning rate': ['one', 'many']}
    assert [row[3] for row in tables['Scores']] == ['its accuracy', '0.9000', 'its mAP', '0.9000']
    for sentence in ('The datasets are different (esc50, audioset)', 'The main metrics are different (acc, mAP)',
                     'The loss functions are different (CE, BCE)'):
        assert sentence in page
    assert '<tr class=marked>' not in page


def test_an_experiment_under_way_is_shown_and_said(make, show, panels):
    page, tables = show(make('done'), make('half', scores=(0.1, 0.2), finished=False))
    assert 'half is not finished: 2 of 3 epochs.' in page
    assert len(panels['accuracy']['half']) == 2
    assert tables['Scores'][2][1] == '2 of 3' and tables['Scores'][2][-2:] == ['–', 'cpu']


def test_a_broken_experiment_is_a_sentence_and_the_others_are_shown(make, show, capsys, tmp_path):
    kinds = '"model_size": "b", "n_epochs": 1, "dataset": "a", "metrics":'
    breakages = {
        'args.json': ['{"lr": ', '[1]', '{}', f'{{{kinds} "F1"}}', f'{{{kinds} ["acc"]}}', '\xff'],
        'result.csv': ['', '0.5,0.5\n', 'half'],
        'finished': ['{', '{}', '{"seconds": "long"}', '3'],
        'environment.json': ['{', '{}', '{"starts": [3]}', '{"starts": [{}]}', '{"starts": 3}'],
        'wa_result.csv': ['', 'half'], 'eval_result.csv': ['0.1\n0.2\n', '0.1\n0.2\nhalf\n']}
    broken = []
    for name, texts in breakages.items():
        for number, text in enumerate(texts):
            broken.append(make(f'{name}-{number}'))
            (tmp_path / broken[-1] / name).write_text(text, encoding='latin-1')
    page, tables = show(make('good'), *broken)
    sentences = re.findall('<p>Not shown: (.*?)</p>', page)
    assert len(sentences) == len(broken) and 'Not known' not in page
    for sentence, name in zip(sentences, broken):
        assert name in sentence, sentence
    assert [row[0] for row in tables['Scores'][1:]] == ['good']
    said = capsys.readouterr().err
    assert said.count('not on the page: ') == len(broken) and 'Traceback' not in said


def test_what_is_no_experiment_is_said(make, show, tmp_path):
    make('good')
    make('cv/fold1', finished=False)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()
    make('begun')
    (tmp_path / 'begun' / 'result.csv').unlink()
    page, _ = show('good', 'cv', 'empty', 'file', 'nowhere', 'begun')
    assert re.findall('<p>Not shown: (.*?)</p>', page) == [
        'there is no finished fold in cv.', 'empty holds no experiment: there is neither args.json nor fold1 in it.',
        'there is no folder file.', 'there is no folder nowhere.', 'begun has no epoch yet.']


def test_if_nothing_can_be_shown_there_is_no_page(tmp_path, capsys):
    with pytest.raises(SystemExit, match='error: there is no folder .*/a; there is no folder .*/b'):
        report.main(['--compare', str(tmp_path / 'a'), str(tmp_path / 'b'), '--out', str(tmp_path / 'deep/page.html')])
    assert not list(tmp_path.iterdir())


def test_the_page_is_compare_html_in_the_working_directory_or_where_out_says(make, tmp_path, capsys):
    make('a')
    report.main(['--compare', 'a'])
    assert capsys.readouterr().out == 'compare.html\n' and (tmp_path / 'compare.html').exists()
    (tmp_path / 'a' / 'report.html').touch()
    report.main(['--compare', 'a', '--out', 'deep/er/page.html'])
    page = (tmp_path / 'deep' / 'er' / 'page.html').read_text()
    assert [value for name, value in Reader(page).attributes if name == 'href'] == ['../../a/report.html']


@pytest.mark.parametrize('words, reason', [
    ([], 'one of the arguments --exp_dir --compare is required'), (['--compare'], 'expected at least one argument'),
    (['--compare', 'a', '--exp_dir', 'b'], 'not allowed with'), (['--exp_dir', 'a', '--out', 'b'], '--out is for --compare')])
def test_options_that_do_not_go_together_are_refused(words, reason, capsys):
    with pytest.raises(SystemExit):
        report.main(words)
    assert reason in capsys.readouterr().err


def test_names_and_settings_are_shown_as_they_are(make, show):
    names = [make('_$a & <b>$'), make('"x"', dataset='<script>alert(1)</script>')]
    page, tables = show(*names)
    assert {*names, '<script>alert(1)</script>'} <= set(Reader(page).texts) and '<script' not in page


def test_a_folder_whose_name_is_no_text_is_shown_with_question_marks(make, show, tmp_path):
    odd = os.fsdecode(b'caf\xe9')
    make(odd)
    (tmp_path / odd / 'report.html').touch()
    page, tables = show(odd, make('b'))
    assert [row[0] for row in tables['Scores']] == ['', 'caf?', 'b'] and 'href="caf%E9/report.html"' in page


@pytest.mark.parametrize('folders, names', [
    (['exp/a', 'exp/b'], ['a', 'b']), (['exp/a'], ['a']), (['a/fold1', 'b/fold1'], ['a', 'b']),
    (['exp/a/fold1', 'exp/a/fold2'], ['fold1', 'fold2']), (['exp', 'exp/fold1'], ['exp', 'exp/fold1']),
    (['x/a/y/fold1', 'x/b/y/fold1'], ['a', 'b']), (['/a/b', '/c/d'], ['a/b', 'c/d']),
    (['a/x/x', 'a/x'], ['x/x', 'x']), (['exp/run-1', 'exp/run-2'], ['run-1', 'run-2']),
    (['e/esc50-base384-b48-lr1e-5-seed0', 'e/esc50-base384-b48-lr1e-4-seed0'], ['lr1e-5', 'lr1e-4']),
    (['e/esc50-base384-b48-lr1e-5-seed0', 'e/esc50-tiny224-b48-lr1e-5-seed1'],
     ['base384-b48-lr1e-5-seed0', 'tiny224-b48-lr1e-5-seed1']),
    (['e/esc50-base384-b48-lr1e-5-seed0'], ['esc50-base384-b48-lr1e-5-seed0']),
    (['e/esc50-base384-b48-lr1e-5', 'e/esc50-base384-b48-lr1e-5-seed1'], ['lr1e-5', 'lr1e-5-seed1'])])
def test_short_names_tell_folders_apart(tmp_path, monkeypatch, folders, names):
    monkeypatch.chdir(tmp_path)
    assert short_names(list(map(Path, folders))) == names


def test_a_folder_that_is_named_twice_is_shown_once(make, show, panels):
    make('a')
    show('a', './a/', 'a')
    assert list(panels['accuracy']) == ['a']


def test_no_two_curves_look_alike_and_more_are_refused(make):
    looks = {tuple(style.values()) for style in CURVE_STYLES}
    assert len(looks) == len(CURVE_STYLES) == 28
    curves = {f'experiment {i}': np.arange(3.0) for i in range(28)}
    figure = plot_comparison({'mAP': curves}, list(curves))
    drawn = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(drawn) == 28 and png_of(figure).startswith(b'\x89PNG')
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(curves)
    with pytest.raises(DataError, match='at most 28 experiments'):
        comparison_page.write_comparison([Path(str(i)) for i in range(29)], Path('page.html'))
