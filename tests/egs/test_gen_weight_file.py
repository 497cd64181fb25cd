"""Weight files: the published formula, for every sample in its place."""
import logging

import numpy as np
import pytest

import gen_weight_file
from utilities.weight_files import read_sample_weights


@pytest.fixture
def generate(monkeypatch):
    """The script's entry point, which leaves the test's logging alone."""
    monkeypatch.setattr(logging, 'basicConfig', lambda **_: None)
    return gen_weight_file.main


@pytest.mark.parametrize('option', [[], ['--data_path'], ['--data-path']])
def test_a_weight_adds_1000_over_the_samples_of_each_label(generate, make_labels, make_datafile,
                                                           tmp_path, option):
    labels = ['/m/0', '/m/1,/m/0', '/m/2', '/m/0,/m/1', '/m/0']
    generate([*option, str(make_datafile([('x.wav', mids) for mids in labels])), '--label_csv',
              str(make_labels(4))])
    m0, m1, m2 = 1000 / 4.01, 1000 / 2.01, 1000 / 1.01
    assert np.loadtxt(tmp_path / 'data_weight.csv') == pytest.approx(
        [m0, m0 + m1, m2, m0 + m1, m0], rel=1e-9)


def test_weights_of_many_samples_equal_the_plain_formula(generate, make_labels, make_datafile,
                                                         tmp_path):
    rng = np.random.default_rng(0)
    sets = [rng.choice(60, size=rng.integers(1, 6), replace=False, p=np.arange(1, 61) / 1830)
            for _ in range(3000)]
    path = make_datafile([(f'{i}.wav', ','.join(f'/m/{k}' for k in classes))
                          for i, classes in enumerate(sets)])
    generate([str(path), '--label_csv', str(make_labels(60))])
    counts = [sum(k in classes for classes in sets) for k in range(60)]
    expected = [sum(1000 / (counts[k] + 0.01) for k in classes) for classes in sets]
    weights = read_sample_weights(tmp_path / 'data_weight.csv', 3000)
    assert weights == pytest.approx(expected, rel=1e-9)


def test_a_label_that_an_entry_repeats_counts_once(generate, make_labels, make_datafile, tmp_path):
    generate([str(make_datafile([('a.wav', '/m/0,/m/0'), ('b.wav', '/m/0')])), '--label_csv',
              str(make_labels(1))])
    assert np.loadtxt(tmp_path / 'data_weight.csv') == pytest.approx([1000 / 2.01] * 2, rel=1e-9)


def test_having_no_label_counts_as_one_more_class(generate, make_labels, make_datafile, tmp_path,
                                                  capsys):
    labels = ['/m/0', '', '/m/1,/m/0', '', '']
    generate([str(make_datafile([('x.wav', mids) for mids in labels])), '--label_csv',
              str(make_labels(3))])
    m0, m1, none = 1000 / 2.01, 1000 / 1.01, 1000 / 3.01
    assert np.loadtxt(tmp_path / 'data_weight.csv') == pytest.approx(
        [m0, none, m0 + m1, none, none], rel=1e-9)
    said = capsys.readouterr().out
    assert '5 samples, 2 of 3 classes, from 1 to 2 samples each, 3 negatives;' in said
    assert '1 classes have no samples: class 2' in said


def test_only_negatives_weigh_the_same(generate, make_labels, make_datafile, tmp_path, capsys):
    generate([str(make_datafile([('x.wav', '')] * 4)), '--label_csv', str(make_labels(3))])
    assert np.loadtxt(tmp_path / 'data_weight.csv') == pytest.approx([1000 / 4.01] * 4, rel=1e-9)
    assert '4 samples, 0 of 3 classes, 4 negatives;' in capsys.readouterr().out


def test_the_summary_names_the_classes_without_samples(generate, make_labels, make_datafile,
                                                       capsys):
    generate([str(make_datafile([('a.wav', '/m/0'), ('b.wav', '/m/2,/m/0')])), '--label_csv',
              str(make_labels(4))])
    said = capsys.readouterr().out
    assert '2 samples, 2 of 4 classes, from 1 to 2 samples each' in said
    assert '2 classes have no samples: class 1; class 3' in said


def test_without_a_label_file_the_labels_are_audiosets(generate, make_datafile, tmp_path):
    generate([str(make_datafile([('a.wav', '/m/09x0r')]))])
    assert np.loadtxt(tmp_path / 'data_weight.csv') == pytest.approx(1000 / 1.01, rel=1e-9)


def test_an_unknown_label_stops_with_its_name(generate, make_datafile, tmp_path):
    with pytest.raises(SystemExit, match="'/m/0' is not in the label file"):
        generate([str(make_datafile([('a.wav', '/m/0')]))])
    assert not (tmp_path / 'data_weight.csv').exists()


@pytest.mark.parametrize('words', [[], ['a.json', '--data_path', 'b.json']])
def test_one_datafile_is_needed(generate, words):
    with pytest.raises(SystemExit) as stopped:
        generate(words)
    assert stopped.value.code == 2
