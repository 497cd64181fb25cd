"""Preparation of one's own dataset: from folders or a CSV to label file, split and options."""
import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import own_dataset as prep
import own_split
from audio.reading import AudioError
from own_clips import LabelledClip, SplitConf
from utilities.errors import DataError
from utilities.labels import read_labels


@pytest.fixture
def make_clips(tmp_path):
    """Write recordings below `data`, by relative path; returns that folder."""
    def make(*paths, seconds=0.1):
        for path in paths:
            file = tmp_path / 'data' / path
            file.parent.mkdir(parents=True, exist_ok=True)
            # Otherwise soundfile goes by the suffix.
            container = 'OGG' if path.endswith('.opus') else None
            soundfile.write(file, np.full(int(16000 * seconds), 0.1), 16000, format=container)
        return tmp_path / 'data'
    return make


@pytest.fixture
def make_csv(tmp_path, make_clips):
    """Write `data/list.csv` from text, and recordings c0.wav to c(n-1).wav beside it.

    Returns its path.
    """
    def make(text, clips=4, encoding='utf-8'):
        path = make_clips(*(f'c{i}.wav' for i in range(clips))) / 'list.csv'
        path.write_text(text, encoding=encoding)
        return path
    return make


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'prep'


def table(header, rows):
    return header + '\n' + ''.join(f'{row}\n' for row in rows)


def entries_of(out):
    return [json.loads(path.read_text())['data']
            for path in sorted((out / 'datafiles').glob('*.json'))]


def parts(out):
    """{datafile: [(file name, labels), ...]} of a preparation."""
    contents = {path.stem: json.loads(path.read_text())['data']
                for path in sorted((out / 'datafiles').glob('*.json'))}
    return {name: [(os.path.basename(entry['wav']), entry['labels']) for entry in entries]
            for name, entries in contents.items()}


def files(out):
    """{datafile: set of file names} of a preparation."""
    return {name: {wav for wav, _ in entries} for name, entries in parts(out).items()}


def labels_by_file(out):
    return dict(pair for entries in parts(out).values() for pair in entries)


def options(out):
    return dict(line.removeprefix('--').split('=')
                for line in (out / 'run_options.txt').read_text().split())


def many(classes=('cat', 'dog'), n=10):
    return [f'{name}/{name}{i}.wav' for name in classes for i in range(n)]


def test_a_folder_a_class_becomes_a_stratified_split(make_clips, out):
    prep.prepare(make_clips(*many()), out)
    assert read_labels(out / 'labels.csv').names == ('cat', 'dog')
    assert (out / 'labels.csv').read_text() == 'index,mid,display_name\n0,cat,"cat"\n1,dog,"dog"\n'
    split = parts(out)
    assert {name: Counter(label for _, label in entries) for name, entries in split.items()} == {
        'train_data': {'cat': 8, 'dog': 8}, 'val_data': {'cat': 2, 'dog': 2}}
    labels = labels_by_file(out)
    assert len(labels) == 20 and all(wav.startswith(label) for wav, label in labels.items())


def test_clips_are_found_in_deeper_folders_and_in_any_format_of_libsndfile(make_clips, out):
    clips = make_clips('cat/a.flac', 'cat/day 1/b.OGG', 'cat/day 1/x/c.mp3', 'dog/d.aiff',
                       'dog/e.opus', 'dog/f.wav')
    prep.prepare(clips, out)
    assert labels_by_file(out) == {'a.flac': 'cat', 'b.OGG': 'cat', 'c.mp3': 'cat', 'd.aiff': 'dog',
                                   'e.opus': 'dog', 'f.wav': 'dog'}


def test_other_files_are_left_out_and_counted(make_clips, out, caplog):
    data = make_clips(*many(n=3), 'loose.wav', 'cat/.hidden.wav', '.cache/a.wav')
    for name in ('cat/notes.txt', 'dog/more.TXT', 'dog/song.mid', '.DS_Store'):
        (data / name).write_text('x')
    caplog.set_level('INFO')
    prep.prepare(data, out)
    assert 'files left out: 4 (2 .txt, 1 beside the class folders, 1 .mid)' in caplog.text
    assert len(labels_by_file(out)) == 6


def test_a_link_back_to_a_folder_above_does_no_harm(make_clips, out):
    data = make_clips(*many(n=3))
    (data / 'cat' / 'loop').symlink_to(data / 'cat')
    prep.prepare(data, out)
    assert len(sum(parts(out).values(), [])) == 6


def test_a_split_in_folders_is_taken_as_it_is(make_clips, out):
    clips = make_clips('Train/cat/a.wav', 'Train/dog/b.wav', 'validation/cat/c.wav',
                       'validation/dog/d.wav', 'eval/dog/e.wav')
    prep.prepare(clips, out)
    assert files(out) == {'train_data': {'a.wav', 'b.wav'}, 'val_data': {'c.wav', 'd.wav'},
                          'test_data': {'e.wav'}}


@pytest.mark.parametrize('folders', [
    ('train', 'test'), ('train', 'val', 'dev'), ('train', 'val', 'other')])
def test_a_split_in_folders_that_is_not_clear_is_refused(make_clips, out, folders):
    data = make_clips(*(f'{folder}/{name}/a.wav' for folder in folders for name in ('cat', 'dog')))
    with pytest.raises(DataError, match='exactly train, val and perhaps test'):
        prep.prepare(data, out)


def test_a_class_may_be_called_train(make_clips, out):
    prep.prepare(make_clips(*many(('bus', 'train'), 3)), out)
    assert read_labels(out / 'labels.csv').names == ('bus', 'train')


@pytest.mark.parametrize('header', [
    'path,labels', 'file;label', 'Filename\tClass', 'id,wav,category', ' filepath , Label '])
def test_a_csv_is_read_whatever_its_delimiter_and_the_names_of_its_columns(make_csv, out, header):
    delimiter = next(mark for mark in ',;\t' if mark in header)
    rows = ([str(i)] * header.startswith('id') + [f'c{i}.wav', ('cat', 'dog')[i % 2]]
            for i in range(4))
    prep.prepare(make_csv(table(header, map(delimiter.join, rows))), out)
    assert labels_by_file(out) == {'c0.wav': 'cat', 'c1.wav': 'dog', 'c2.wav': 'cat',
                                   'c3.wav': 'dog'}


def test_a_csv_may_have_a_byte_order_mark_quotes_and_windows_lines(make_csv, out):
    text = ('path,labels,note\r\n"c0.wav","chien","a, b"\r\nc1.wav,"é",x\r\n\r\n'
            'c2.wav,chien,x\r\nc3.wav,é,x\r\n')
    prep.prepare(make_csv(text, encoding='utf-8-sig'), out)
    assert labels_by_file(out) == {'c0.wav': 'chien', 'c1.wav': 'é', 'c2.wav': 'chien',
                                   'c3.wav': 'é'}


def test_paths_are_relative_to_the_csv_or_absolute(make_clips, out):
    data = make_clips('audio/a.wav', 'audio/b.wav', 'audio/c.wav')
    (data / 'meta').mkdir()
    (data / 'meta' / 'list.csv').write_text(
        table('path,label', ['../audio/a.wav,x', f'{data}/audio/b.wav,y', '../audio/c.wav,x']))
    prep.prepare(data / 'meta' / 'list.csv', out)
    assert labels_by_file(out) == {'a.wav': 'x', 'b.wav': 'y', 'c.wav': 'x'}


@pytest.mark.parametrize('cells, expected', [
    (['a;b', 'b', 'a;c', 'c'], ['a,b', 'b', 'a,c', 'c']),
    (['a | b', 'b', 'a', 'a'], ['a,b', 'b', 'a', 'a']),
    (['"a, b"', 'b', '"a,a"', 'a'], ['a,b', 'b', 'a', 'a']),
    (['"one, two";b', 'b', 'b', 'b'], ['one_ two,b', 'b', 'b', 'b']),
])
def test_several_labels_stand_in_one_cell(make_csv, out, cells, expected):
    rows = (f'c{i}.wav,{cell}' for i, cell in enumerate(cells))
    prep.prepare(make_csv(table('path,labels', rows)), out)
    assert labels_by_file(out) == {f'c{i}.wav': labels for i, labels in enumerate(expected)}
    assert options(out)['loss'] == 'BCE' and options(out)['metrics'] == 'mAP'


def test_a_split_column_is_taken_as_it_is(make_csv, out):
    rows = ['c0.wav,a,train', 'c1.wav,b,TRAIN', 'c2.wav,a,Dev', 'c3.wav,b,test']
    prep.prepare(make_csv(table('path,label,split', rows)), out)
    assert files(out) == {'train_data': {'c0.wav', 'c1.wav'}, 'val_data': {'c2.wav'},
                          'test_data': {'c3.wav'}}


def test_a_fold_column_is_taken_as_it_is(make_csv, out):
    rows = [f'c{i}.wav,{"ab"[i % 2]},{fold}' for i, fold in enumerate((10, 10, 9, 9, 2, 2))]
    prep.prepare(make_csv(table('path,label,fold', rows), clips=6), out)
    assert set(files(out)) == {f'{part}_data_{k}' for part in ('train', 'val') for k in (1, 2, 3)}
    assert [files(out)[f'val_data_{k}'] for k in (1, 2, 3)] == [
        {'c4.wav', 'c5.wav'}, {'c2.wav', 'c3.wav'}, {'c0.wav', 'c1.wav'}]
    assert files(out)['train_data_1'] == {'c0.wav', 'c1.wav', 'c2.wav', 'c3.wav'}


@pytest.mark.parametrize('column', ['split', 'fold'])
def test_a_given_split_and_options_for_another_are_refused(make_csv, out, column):
    csv = make_csv(table(f'path,label,{column}', ['c0.wav,a,train', 'c1.wav,b,val']))
    with pytest.raises(DataError, match='brings its own split'):
        prep.prepare(csv, out, SplitConf(n_folds=2))


def test_folds_that_are_made_hold_each_clip_out_once_and_every_class_alike(make_clips, out):
    prep.prepare(make_clips(*many(('cat', 'cow', 'dog'), 6)), out, SplitConf(n_folds=3))
    split = parts(out)
    held_out = [pair for k in (1, 2, 3) for pair in split[f'val_data_{k}']]
    assert len(held_out) == len(set(held_out)) == 18
    for k in (1, 2, 3):
        labels = [label for _, label in split[f'val_data_{k}']]
        assert Counter(labels) == {'cat': 2, 'cow': 2, 'dog': 2}
        assert not set(split[f'val_data_{k}']) & set(split[f'train_data_{k}'])


def test_a_test_set_is_made_on_demand(make_clips, out):
    prep.prepare(make_clips(*many(n=20)), out, SplitConf(val_share=0.2, test_share=0.1))
    sizes = {name: len(found) for name, found in files(out).items()}
    assert sizes == {'train_data': 28, 'val_data': 8, 'test_data': 4}


@pytest.mark.parametrize('share', [0.05, 0.1, 0.15, 0.3, 0.4, 0.45])
def test_shares_are_met(share):
    clips = [LabelledClip(f'{label}{i}', (label,)) for label in 'abc' for i in range(60)]
    train, val = own_split.hold_out(clips, share, seed=0)
    assert len(train) + len(val) == 180
    assert max(abs(count - 60 * share)
               for count in Counter(clip.labels for clip in val).values()) <= 2


def test_a_small_class_keeps_its_share_where_there_are_more_folds_than_clips():
    clips = [LabelledClip(f'{label}{i}', (label,)) for label, n in (('a', 60), ('b', 4), ('c', 5))
             for i in range(n)]
    for seed in range(5):
        held_out = Counter(clip.labels[0] for clip in own_split.hold_out(clips, 0.3, seed)[1])
        assert held_out['a'] in (17, 18, 19) and held_out['b'] in (1, 2) and held_out['c'] in (1, 2)


@pytest.mark.parametrize('conf', [{}, {'n_folds': 3}, {'test_share': 0.2}])
def test_a_group_is_never_divided(make_csv, out, conf):
    rows = [f'c{i}.wav,{"ab"[i % 2]},speaker {i // 4}' for i in range(40)]
    prep.prepare(make_csv(table('path,label,group', rows), clips=40), out, SplitConf(**conf))
    split = {name: {int(wav[1:-4]) // 4 for wav in names} for name, names in files(out).items()}
    assert all(not split[name] & split[name.replace(part, 'train')]
               for part in ('val', 'test') for name in split if name.startswith(part))
    assert set().union(*split.values()) == set(range(10))


def test_a_given_split_that_divides_groups_is_pointed_out(make_csv, out, caplog):
    rows = ['c0.wav,a,train,ann', 'c1.wav,b,train,bob', 'c2.wav,a,val,ann', 'c3.wav,b,val,eve',
            'c4.wav,a,test,eve', 'c5.wav,b,test,ida']
    prep.prepare(make_csv(table('path,label,split,group', rows), clips=6), out)
    assert 'groups in both train_data and val_data: ann' in caplog.text
    assert 'groups in both val_data and test_data: eve' in caplog.text
    assert caplog.text.count('groups in both') == 2


def test_given_folds_that_divide_groups_are_pointed_out(make_csv, out, caplog):
    rows = ['c0.wav,a,1,ann', 'c1.wav,b,1,bob', 'c2.wav,a,2,ann', 'c3.wav,b,2,eve']
    prep.prepare(make_csv(table('path,label,fold,group', rows)), out)
    assert caplog.text.count('groups in both') == 2  # one a fold
    assert 'groups in both train_data_2 and val_data_2: ann' in caplog.text


def test_several_labels_are_split_by_the_rarest(make_csv, out):
    rows = [f'c{i}.wav,{"common;rare" if i % 4 == 0 else "common"}' for i in range(40)]
    prep.prepare(make_csv(table('path,labels', rows), clips=40), out)
    held_out = [labels for _, labels in parts(out)['val_data']]
    assert Counter(held_out) == {'common': 6, 'common,rare': 2}


def test_the_split_depends_on_the_data_and_the_seed_alone(make_clips, tmp_path, monkeypatch):
    data = make_clips(*many())
    prep.prepare(data, tmp_path / 'first')
    walk, iterdir = os.walk, Path.iterdir

    def shuffled(values):
        return random.Random(1).sample(list(values), k=len(list(values)))
    monkeypatch.setattr(os, 'walk', lambda *a, **k: ((top, shuffled(dirs), shuffled(names))
                                                          for top, dirs, names in walk(*a, **k)))
    monkeypatch.setattr(Path, 'iterdir', lambda self: iter(shuffled(list(iterdir(self)))))
    prep.prepare(data, tmp_path / 'second')
    prep.prepare(data, tmp_path / 'third', SplitConf(seed=1))
    assert parts(tmp_path / 'first') == parts(tmp_path / 'second') != parts(tmp_path / 'third')


def test_classes_too_rare_for_every_part_are_named(make_clips, out, caplog):
    prep.prepare(make_clips(*many(), 'yak/only.wav'), out)
    assert 'classes too rare to be in every part of the split: yak (not in ' in caplog.text


def test_a_dataset_with_fewer_clips_a_class_than_parts_is_still_split(make_clips, out):
    prep.prepare(make_clips(*many(n=2)), out)
    sizes = {name: len(names) for name, names in files(out).items()}
    assert sizes == {'train_data': 2, 'val_data': 2}


@pytest.mark.parametrize('text, conf, reason', [
    (table('path,label', ['c0.wav,a', 'c1.wav,b']), {}, 'cannot be split'),
    (table('path,label', [f'c{i}.wav,{"ab"[i % 2]}' for i in range(4)]), {'n_folds': 3},
     'at most 2'),
    (table('path,label,group', [f'c{i}.wav,{"ab"[i % 2]},g' for i in range(4)]), {},
     'only one group'),
    (table('path,label,fold', ['c0.wav,a,1', 'c1.wav,b,1']), {}, 'nothing for train_data_1'),
    (table('path,label,split', ['c0.wav,a,train', 'c1.wav,b,test']), {},
     'nothing for val_data')])
def test_a_split_that_cannot_be_is_refused(make_csv, out, text, conf, reason):
    with pytest.raises(DataError, match=reason):
        prep.prepare(make_csv(text), out, SplitConf(**conf))


def test_a_comma_in_the_name_of_a_class_is_not_one_in_its_mid(make_clips, out):
    prep.prepare(make_clips(*many(('cat, small', 'cat_ small', 'dog "x"'), 3)), out)
    labels = read_labels(out / 'labels.csv')
    assert labels.names == ('cat, small', 'cat_ small', 'dog "x"')
    assert labels.mids == ('cat_ small_2', 'cat_ small', 'dog "x"')
    assert set(labels_by_file(out).values()) == set(labels.mids)


def test_a_label_file_fixes_classes_and_order(make_csv, make_labels, out, caplog):
    rows = ['c0.wav,class 2', 'c1.wav,/m/0', 'c2.wav,/m/2', 'c3.wav,class 0']
    given = make_labels(3)
    prep.prepare(make_csv(table('path,label', rows)), out, label_csv=given)
    assert read_labels(out / 'labels.csv') == read_labels(given) and options(out)['n_class'] == '3'
    assert labels_by_file(out) == {'c0.wav': '/m/2', 'c1.wav': '/m/0', 'c2.wav': '/m/2',
                                   'c3.wav': '/m/0'}
    assert 'classes of the label file without clips: 1 of 3' in caplog.text


def test_a_label_that_is_not_in_the_label_file_is_named(make_clips, make_labels, out):
    with pytest.raises(DataError, match="cat0.wav: the label 'cat' is neither.*labels.csv"):
        prep.prepare(make_clips(*many()), out, label_csv=make_labels(3))


@pytest.mark.parametrize('text, reason', [
    (table('path,label', ['c0.wav,a', 'gone.wav,a', 'lost.wav,b']),
     '2 of 3 audio files do not exist.*gone.wav'),
    (table('path,label', ['c0.wav,a', 'c1.wav,b', './c0.wav,b']),
     "lines 2 and 4: './c0.wav' is listed twice"),
    (table('path,label', ['c0.wav,a', ',b']), "line 3: the column 'path' is empty"),
    (table('path,label', ['c0.wav,', 'c1.wav,']), 'no clip has a label'),
    (table('path,labels', ['c0.wav,a;b', 'c1.wav,;']), "line 3: there is no label in ';'"),
    (table('path,label,split', ['c0.wav,a,train', 'c1.wav,b,mine']),
     "line 3: the split 'mine' is none of train, val"),
    (table('path,label,fold', ['c0.wav,a,1', 'c1.wav,b,']),
     "line 3: the column 'fold' is empty"),
    (table('path,label', ['c0.wav,a', 'c1.wav,a,b']), 'line 3: .* needs quotes'),
    (table('path,species', ['c0.wav,a']),
     "columns 'path, species', but .*label or class or category"),
    (table('path,label,fold,split', ['c0.wav,a,1,train']), 'fold and split'),
    (table('path,label', ['c0.wav,a', 'c1.wav,a']), 'only one class, a'),
    ('path,label\n', 'lists no files'), ('', 'path and labels are needed')])
def test_a_csv_that_is_wrong_is_refused_with_the_line(make_csv, out, text, reason):
    with pytest.raises(DataError, match=reason):
        prep.prepare(make_csv(text), out)


def test_a_csv_in_code_page_1252_is_refused_with_the_place_and_the_remedy(make_csv, out):
    reason = 'list.csv as a CSV: line 2, character 11 is not UTF-8 .*iconv -f WINDOWS-1252'
    with pytest.raises(DataError, match=reason):
        prep.prepare(make_csv('path,label\nc0.wav,café\n', encoding='cp1252'), out)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_a_csv_from_windows_has_backslashes_semicolons_and_perhaps_utf_16(make_clips, out,
                                                                          encoding):
    data = make_clips('audio/a.wav', 'audio/deep/b.wav', 'c.wav')
    text = ('path;label;\r\naudio\\a.wav;犬;\r\naudio\\deep\\b.wav;猫, 小;\r\n'
            '.\\c.wav;犬;\r\n;;\r\n')
    (data / 'list.csv').write_text(text, encoding=encoding, newline='')
    prep.prepare(data / 'list.csv', out)
    assert labels_by_file(out) == {'a.wav': '犬', 'b.wav': '猫,小', 'c.wav': '犬'}
    assert {entry['wav'] for entries in entries_of(out) for entry in entries} == {
        str(data / name) for name in ('audio/a.wav', 'audio/deep/b.wav', 'c.wav')}


def test_a_backslash_may_be_part_of_a_name(make_clips, out):
    data = make_clips('audio\\a.wav', 'audio/a.wav', 'audio/b.wav', 'audio/c.wav')
    (data / 'list.csv').write_text('path,label\naudio\\a.wav,x\naudio\\b.wav,y\naudio/c.wav,x\n')
    prep.prepare(data / 'list.csv', out)
    assert {entry['wav'] for entries in entries_of(out) for entry in entries} == {
        str(data / name) for name in ('audio\\a.wav', 'audio/b.wav', 'audio/c.wav')}


def test_an_empty_cell_of_labels_is_a_negative_and_negatives_are_split_like_a_class(make_csv, out,
                                                                                    capsys):
    rows = [f'c{i}.wav,{("a", "b", "", "")[i % 4]}' for i in range(40)]
    prep.prepare(make_csv(table('path,labels', rows), clips=40), out)
    assert Counter(labels for _, labels in parts(out)['val_data']) == {'a': 2, 'b': 2, '': 4}
    assert Counter(labels_by_file(out).values()) == {'a': 10, 'b': 10, '': 20}
    expected = {'loss': 'BCE', 'metrics': 'mAP', 'n_class': '2'}
    assert options(out).items() >= expected.items()
    assert '20 clips have no label (negatives)' in capsys.readouterr().out


def test_one_class_and_negatives_are_enough(make_csv, out):
    rows = [f'c{i}.wav,{"a" * (i % 2)}' for i in range(10)]
    prep.prepare(make_csv(table('path,labels', rows), clips=10), out, SplitConf(n_folds=5))
    assert options(out)['n_class'] == '1' and read_labels(out / 'labels.csv').names == ('a',)
    for k in range(1, 6):
        assert Counter(labels for _, labels in parts(out)[f'val_data_{k}']) == {'a': 1, '': 1}


def test_negatives_of_groups_are_split_with_them(make_csv, out):
    rows = [f'c{i}.wav,{"a" if i % 2 else ""},{i // 4}' for i in range(40)]
    prep.prepare(make_csv(table('path,label,group', rows), clips=40), out)
    counts = {name: Counter(bool(labels) for _, labels in entries)
              for name, entries in parts(out).items()}
    assert counts == {'train_data': {True: 16, False: 16}, 'val_data': {True: 4, False: 4}}


@pytest.mark.parametrize('paths, reason', [
    (('one/a.wav', 'one/b.wav'), 'only one class, one'),
    (('a.wav',), 'no audio files in folders'),
    ((), 'does not exist'),
])
def test_a_folder_that_is_no_dataset_is_refused(make_clips, tmp_path, out, paths, reason):
    make_clips(*paths)
    with pytest.raises(DataError, match=reason):
        prep.prepare(tmp_path / 'data', out)


def test_a_broken_recording_is_named_and_leaves_the_preparation_open(make_clips, out):
    data = make_clips(*many(n=3))
    (data / 'dog' / 'dog1.wav').write_text('not audio')
    reason = '1 of 6 .*dog1.wav: .*src/check_data.py .*train_data.json .*--label_csv'
    with pytest.raises(AudioError, match=reason):
        prep.prepare(data, out)
    (data / 'dog' / 'dog1.wav').unlink()
    prep.prepare(data, out)
    assert len(labels_by_file(out)) == 5


@pytest.mark.parametrize('seconds, frames', [(0.1, '16'), (0.5, '50'), (12, '1024')])
def test_the_input_is_as_long_as_nearly_all_clips(make_clips, out, seconds, frames):
    make_clips(*many(), seconds=seconds)
    prep.prepare(make_clips('cat/long.wav', seconds=15), out)
    assert options(out) == {'n_class': '2', 'loss': 'CE', 'metrics': 'acc', 'audio_length': frames}


def test_the_summary_says_what_was_found_and_chosen(make_clips, out, capsys):
    make_clips(*many(), seconds=0.5)
    prep.prepare(make_clips('cat/long.wav', seconds=2), out)
    said = capsys.readouterr().out
    assert '21 clips of 2 classes, 0.50 to 2.00 s long, median 0.50 s' in said
    assert ('train_data: 17 clips, val_data: 4 clips' in said
            or 'train_data: 16 clips, val_data: 5 clips' in said)
    assert '--audio_length=50 (an input of 0.5 s; clips that are longer and are cut: 1)' in said


def test_a_second_start_finds_everything_prepared(make_clips, out, capsys):
    data = make_clips(*many(n=3))
    prep.prepare(data, out)
    before = parts(out)
    capsys.readouterr()
    prep.prepare(data, out)
    assert capsys.readouterr().out == f'{out} is prepared already\n' and parts(out) == before


def test_other_options_or_clips_are_refused_until_the_old_preparation_is_removed(make_clips, out):
    data = make_clips(*many(n=4))
    prep.prepare(data, out, SplitConf(n_folds=4))
    reason = 'n_folds 4.* now it is .*n_folds 2.*--prep_dir, or remove .*run_options.txt'
    with pytest.raises(DataError, match=reason):
        prep.prepare(data, out, SplitConf(n_folds=2))
    make_clips('cat/new.wav')
    with pytest.raises(DataError, match='8 clips.* now it is .*9 clips'):
        prep.prepare(data, out, SplitConf(n_folds=4))
    (out / 'run_options.txt').unlink()
    prep.prepare(data, out, SplitConf(n_folds=2))
    assert len(files(out)) == 4


def test_datafiles_of_another_origin_are_not_overwritten(make_clips, out):
    (out / 'datafiles').mkdir(parents=True)
    (out / 'datafiles' / 'train_data.json').write_text('precious')
    with pytest.raises(DataError, match='nothing says what they were made from.*--prep_dir, or remove .*datafiles'):
        prep.prepare(make_clips(*many()), out)
    assert (out / 'datafiles' / 'train_data.json').read_text() == 'precious'
