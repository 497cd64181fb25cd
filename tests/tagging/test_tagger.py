"""Checkpoints as taggers: their scores, statistics and classes, and which go together."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from audio.reading import load_waveform
from inference import load_tagger
from models import load_model
from small_tagger import CLASSES, LABELS, MEAN, STD, first_window, tag_here
from utilities.errors import DataError


def scores_of(source, path, **options):
    """Return the scores (windows, classes) of a recording."""
    [tagging] = tag_here(load_tagger(source, 'cpu', 'off', **options), path)
    return tagging.scores


def test_scores_of_several_checkpoints_are_averaged_each_with_its_own_statistics(
        make_checkpoint, make_tone):
    sources = [make_checkpoint('a.pth', seed=1),
               make_checkpoint('b.pth', seed=2, mean=-3.0, std=5.0)]
    path = make_tone('a.wav', seconds=0.5)
    first, second = (scores_of(source, path) for source in sources)
    assert scores_of(sources, path) == pytest.approx((first + second) / 2, abs=1e-6)
    assert np.abs(first - second).max() > 0.01


def test_a_model_trained_with_ce_gives_shares_of_one(make_checkpoint, make_tone):
    path, source = make_tone('a.wav', seconds=0.3), make_checkpoint(loss='CE')
    model, _ = load_model(source)
    with torch.inference_mode():
        expected = model(first_window(load_waveform(path)))[0].softmax(0).numpy()
    [scores] = scores_of(source, path)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert scores.sum() == pytest.approx(1, abs=1e-6)


def test_a_given_loss_goes_before_the_checkpoints_own(make_checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.3)
    sources = {loss: make_checkpoint(f'{loss}.pth', loss=loss) for loss in ('BCE', 'CE')}
    for loss in sources:
        own = scores_of(sources[loss], path)
        for source in sources.values():
            assert (scores_of(source, path, loss=loss) == own).all()


def test_given_statistics_go_before_the_checkpoints_own(make_checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.3)
    given = scores_of(make_checkpoint('a.pth', mean=0.0, std=1.0), path, mean=MEAN, std=STD)
    assert (given == scores_of(make_checkpoint('b.pth'), path)).all()


def test_a_checkpoint_in_safetensors_gives_the_same_scores(make_checkpoint, make_tone):
    path = make_tone('a.wav', seconds=0.3)
    first, second = (scores_of(make_checkpoint(name), path) for name in ('a.pth', 'b.safetensors'))
    assert (first == second).all()


def test_without_a_checkpoint_or_with_an_unknown_precision_a_sentence_says_so(make_checkpoint):
    with pytest.raises(DataError, match='there is no checkpoint: give load_tagger at least one'):
        load_tagger([], 'cpu')
    with pytest.raises(ValueError, match="--amp must be auto, bf16, fp16, off, got 'bfloat16'"):
        load_tagger(make_checkpoint(), 'cpu', amp='bfloat16')


@pytest.mark.parametrize('field, value', [('fstride', 12), ('layer_norm_eps', 1e-12)])
def test_the_digest_tells_apart_all_that_changes_scores(make_checkpoint, make_tone, field, value):
    path, source = make_tone('a.wav', seconds=0.3), make_checkpoint('a.pth')
    shutil.copy(source, 'b.pth')
    description = json.loads(Path('a.json').read_text())
    for name, described in (('a', description), ('b', {**description, field: value})):
        Path(f'{name}.json').write_text(json.dumps(described))
    first, second, same = (load_tagger(name, 'cpu', 'off') for name in ('a.pth', 'b.pth', 'a.pth'))
    assert first.digest() == same.digest() != second.digest()
    [one], [other] = (tag_here(tagger, path) for tagger in (first, second))
    assert (one.scores != other.scores).any()


def test_names_of_classes_that_were_assumed_are_said(make_checkpoint, caplog):
    load_tagger(make_checkpoint(classes=35, labels={}), 'cpu')
    assert [record.getMessage() for record in caplog.records] == [
        'model.pth does not name its 35 classes; assumed: those of speechcommands (--label_csv)']
    caplog.clear()
    load_tagger(make_checkpoint(classes=35, labels={}, dataset='speechcommands'), 'cpu')
    assert not caplog.records


@pytest.mark.parametrize('other, reason', [
    ({'frames': 48}, 'a.pth wants 32 frames x 32 mel bins, but b.pth 48 x 32'),
    ({'labels': {**LABELS, 'names': ['dog', 'cat', 'hen']}}, 'b.pth has other classes than a.pth'),
])
def test_checkpoints_that_do_not_go_together_are_refused(make_checkpoint, other, reason):
    with pytest.raises(DataError, match=reason):
        load_tagger([make_checkpoint('a.pth'), make_checkpoint('b.pth', **other)], 'cpu')


@pytest.mark.parametrize('classes, description, name', [
    (527, {}, 'Speech'), (35, {}, 'backward'), (35, {'dataset': 'speechcommands'}, 'backward')])
def test_a_checkpoint_of_a_known_dataset_needs_no_label_file(make_checkpoint, classes, description,
                                                             name):
    source = make_checkpoint(classes=classes, labels={}, **description)
    assert load_tagger(source, 'cpu').labels.names[0] == name


@pytest.mark.parametrize('classes, description', [
    (CLASSES, {}), (35, {'dataset': 'birds'}), (10, {'dataset': 'audioset'})])
def test_a_checkpoint_without_names_asks_for_a_label_file(make_checkpoint, classes, description):
    with pytest.raises(DataError, match=f'does not name its {classes} classes.*--label_csv'):
        load_tagger(make_checkpoint(classes=classes, labels={}, **description), 'cpu')


def test_a_label_file_gives_the_names(checkpoint, make_labels):
    names = load_tagger(checkpoint, 'cpu', label_csv=make_labels(CLASSES)).labels.names
    assert names == ('class 0', 'class 1', 'class 2')


def test_a_label_file_of_other_classes_or_another_order_is_refused(checkpoint, make_labels, folder):
    with pytest.raises(DataError, match='model.pth has 3 classes, but --label_csv lists 2'):
        load_tagger(checkpoint, 'cpu', label_csv=make_labels(2))
    (folder / 'other.csv').write_text(
        'index,mid,display_name\n0,/m/1,rain\n1,/m/0,dog\n2,/m/2,sea\n')
    with pytest.raises(DataError, match='another order'):
        load_tagger(checkpoint, 'cpu', label_csv='other.csv')
