"""Figures of an experiment."""
import io

import numpy as np
import pytest

from utilities.plots import plot_confusion, plot_curves


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
        return plot_curves({name: np.linspace(1, 0.1 * i, epochs) for i, name in enumerate(names)}, metric, 'my run')
    return make


@pytest.fixture
def confusion():
    """A confusion figure of three classes."""
    return plot_confusion(np.array([[4, 1, 0], [0, 7, 0], [0, 0, 0]]), ['dog', 'door_wood_knock', 'cat'], 'fold 1')


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
    columns = {name: np.array([np.nan, 1.0]) for name in ('train_loss', 'valid_loss', 'acc', 'cum_acc', 'lr')}
    assert png(plot_curves(columns, 'acc', 'my run')).startswith(b'\x89PNG')


def test_a_confusion_matrix_names_its_axes_and_classes(confusion):
    axes = confusion.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ('predicted class', 'true class', 'fold 1')
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ['dog', 'door wood knock', 'cat']


def test_a_confusion_matrix_shows_counts_at_true_row_and_predicted_column(confusion):
    counts = {text.get_position(): text.get_text() for text in confusion.axes[0].texts}
    assert counts == {(0, 0): '4', (1, 0): '1', (1, 1): '7'}
    assert confusion.axes[0].images[0].get_array().tolist() == [[0.8, 0.2, 0], [0, 1, 0], [0, 0, 0]]


def test_a_confusion_matrix_renders_to_png(confusion):
    assert png(confusion).startswith(b'\x89PNG')
