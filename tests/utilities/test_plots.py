"""Figures of an experiment."""
import io

import numpy as np
import pytest

from utilities.plots import clock, plot_confusion, plot_curves, plot_tags


def png(figure):
    """A figure rendered to PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png')
    return buffer.getvalue()


@pytest.fixture
def curves():
    """A curves figure of some epochs for a main metric."""
    def make(metric, epochs):
        names = ('train_loss', 'valid_loss', metric, f'cum_{metric}', 'lr')
        return plot_curves({name: np.linspace(1, 0.1 * i, epochs) for i, name in enumerate(names)},
                           metric, 'my run')
    return make


@pytest.fixture
def confusion():
    """A confusion figure of three classes."""
    return plot_confusion(np.array([[4, 1, 0], [0, 7, 0], [0, 0, 0]]),
                          ['dog', 'door_wood_knock', 'cat'], 'fold 1')


@pytest.mark.parametrize('metric, name', [('mAP', 'mAP'), ('acc', 'accuracy')])
def test_every_panel_of_the_curves_has_its_axes_labelled(curves, metric, name):
    panels = curves(metric, 3).axes
    assert [panel.get_xlabel() for panel in panels] == ['epoch'] * 3
    assert [panel.get_ylabel() for panel in panels] == ['loss', name, 'learning rate']


def test_curves_with_company_are_told_apart_by_a_legend(curves):
    legends = [panel.get_legend() for panel in curves('mAP', 3).axes]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends if legend] == [
        ['training', 'validation'], ['single epoch', 'ensemble of the epochs so far']]


@pytest.mark.parametrize('epochs', [1, 25])
def test_curves_count_epochs_from_1_and_render_to_png(curves, epochs):
    figure = curves('mAP', epochs)
    assert figure.axes[0].lines[0].get_xdata().tolist() == list(range(1, epochs + 1))
    assert png(figure).startswith(b'\x89PNG')


def test_curves_render_where_a_metric_is_not_a_number():
    columns = {name: np.array([np.nan, 1.0])
               for name in ('train_loss', 'valid_loss', 'acc', 'cum_acc', 'lr')}
    assert png(plot_curves(columns, 'acc', 'my run')).startswith(b'\x89PNG')


def test_a_confusion_matrix_names_its_axes_and_classes(confusion):
    axes = confusion.axes[0]
    names = axes.get_xlabel(), axes.get_ylabel(), axes.get_title()
    assert names == ('predicted class', 'true class', 'fold 1')
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ['dog', 'door wood knock', 'cat']


def test_a_confusion_matrix_shows_counts_at_true_row_and_predicted_column(confusion):
    counts = {text.get_position(): text.get_text() for text in confusion.axes[0].texts}
    assert counts == {(0, 0): '4', (1, 0): '1', (1, 1): '7'}
    assert confusion.axes[0].images[0].get_array().tolist() == [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]]


def test_a_confusion_matrix_renders_to_png(confusion):
    assert png(confusion).startswith(b'\x89PNG')


@pytest.fixture
def tags():
    """A tags figure of windows of 10 s.

    Class 1 is heard in the first, class 3 in the second, class 2 never.
    """
    def make(windows=3, seconds=30.0, hop=10.0, spectrogram=None):
        starts = np.arange(windows) * hop
        scores = np.full((windows, 12), 0.02)
        scores[0, 1], scores[min(1, windows - 1), 3], scores[:, 2] = 0.6, 0.9, 0.001
        if spectrogram is None:
            spectrogram = np.linspace(-12, 3, 40 * 32).reshape(40, 32)
        return plot_tags(spectrogram, seconds, starts, np.minimum(starts + 10, seconds), scores,
                         [f'class_{k}' for k in range(12)], 'park.wav')
    return make


def test_tags_name_axes_colours_and_recording(tags):
    upper, lower, level, score = tags().axes
    names = upper.get_title(), upper.get_ylabel(), lower.get_xlabel()
    assert names == ('park.wav', 'frequency (kHz)', 'time (s)')
    assert (level.get_ylabel(), score.get_ylabel()) == ('level (dB)', 'score')


def test_tags_show_the_strongest_classes_first_and_no_more_than_ten(tags):
    rows = [tick.get_text() for tick in tags().axes[1].get_yticklabels()]
    assert rows[:2] == ['class 3', 'class 1'] and len(rows) == 10 and 'class 2' not in rows


def test_tags_are_at_their_windows(tags):
    mesh = tags().axes[1].collections[0]
    assert mesh.get_array()[0].tolist() == [0.02, 0.9, 0.02]
    assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 10, 20, 30]


def test_overlapping_windows_reach_to_the_next_and_gaps_stay_blank(tags):
    overlapping = tags(windows=5, seconds=30, hop=5).axes[1].collections[0]
    assert overlapping.get_coordinates()[0, :, 0].tolist() == [0, 5, 10, 15, 20, 30]
    gaps = tags(windows=2, seconds=30, hop=20).axes[1].collections[0]
    assert gaps.get_array().mask[0].tolist() == [False, True, False]


def test_frequencies_are_at_their_mel_positions_from_20_hz_to_8_khz(tags):
    axes = tags().axes[0]
    low, high = axes.get_ylim()
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks == ['0.25', '0.5', '1', '2', '4', '8']
    assert [1127 * np.log(1 + hertz / 700) for hertz in (20, 8000)] == pytest.approx([low, high])
    assert axes.get_yticks()[2] == pytest.approx(1127 * np.log(1 + 1000 / 700))


@pytest.mark.parametrize('seconds, unit, second_tick', [(5, 's', '0.5'), (185, 'm:ss', '0:15'),
                                                        (4000, 'h:mm:ss', '10:00')])
def test_time_is_written_as_its_length_asks_for(tags, seconds, unit, second_tick):
    figure = tags(windows=1, seconds=seconds)
    png(figure)
    axes = figure.axes[1]
    ticks = {round(tick, 3): label.get_text()
             for tick, label in zip(axes.get_xticks(), axes.get_xticklabels())}
    assert axes.get_xlabel() == f'time ({unit})' and second_tick in ticks.values()


def test_tags_render_with_blank_stretches_and_in_silence(tags):
    spectrogram = np.full((40, 32), -15.9)
    spectrogram[10:20] = np.nan
    assert png(tags(spectrogram=spectrogram)).startswith(b'\x89PNG')


@pytest.mark.filterwarnings('error:Glyph')  # matplotlib's, of a glyph that is missing
def test_characters_that_no_font_has_become_a_number_of_a_class_and_a_question_mark_in_a_title():
    figure = plot_tags(np.zeros((40, 32)), 10, np.array([0]), np.array([10]),
                       np.array([[0.9, 0.8]]), ['dog', '\U0003fffd bark'], '\U0003fffd.wav')
    assert png(figure).startswith(b'\x89PNG')
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()] == ['dog', '1']
    assert figure.axes[0].get_title() == '?.wav'


@pytest.mark.parametrize('seconds, tenths, text', [
    (0, False, '0:00'), (59.6, False, '1:00'), (3605, False, '1:00:05'),
    (65.04, True, '1:05.0'), (59.96, True, '1:00.0')])
def test_a_clock_shows_minutes_and_from_an_hour_on_hours(seconds, tenths, text):
    assert clock(seconds, tenths) == text
