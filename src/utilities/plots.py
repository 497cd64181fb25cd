"""Pictures of an experiment: its curves over the epochs, and confusion matrices."""
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart by the colour-blind too.
BLUE, ORANGE, GREEN = '#0072B2', '#D55E00', '#009E73'


def plot_curves(columns, metric, title):
    """Loss, main metric and its epoch ensemble, and learning rate over the epochs.

    columns: name -> (epochs,), with train_loss, valid_loss, <metric>, cum_<metric> and lr. Returns a Figure.
    """
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    epochs = np.arange(1, len(columns['lr']) + 1)
    panels = [('loss', [('train_loss', 'training', BLUE), ('valid_loss', 'validation', ORANGE)]),
              ({'acc': 'accuracy'}.get(metric, metric), [(metric, 'single epoch', BLUE),
                                                         (f'cum_{metric}', 'ensemble of the epochs so far', GREEN)]),
              ('learning rate', [('lr', None, BLUE)])]
    for axes, (label, lines) in zip(figure.subplots(1, 3), panels):
        for name, legend, colour in lines:
            axes.plot(epochs, columns[name], color=colour, label=legend, marker='o', markersize=3)
        axes.set(xlabel='epoch', ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False)
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    figure.suptitle(title)
    return figure


def plot_confusion(matrix, names, title):
    """Confusion matrix (classes, classes) of counts, rows the truth, coloured by share of the row; a Figure."""
    size = max(5, 0.45 * len(names) + 2)
    figure = Figure(figsize=(size + 1, size), layout='constrained')
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    for truth, predicted in zip(*np.nonzero(matrix)):
        axes.text(predicted, truth, matrix[truth, predicted], ha='center', va='center', fontsize=8,
                  color='white' if share[truth, predicted] > 0.5 else 'black')
    readable = [name.replace('_', ' ') for name in names]
    axes.set_xticks(range(len(names)), readable, rotation=45, ha='right', rotation_mode='anchor')
    axes.set_yticks(range(len(names)), readable)
    axes.set(xlabel='predicted class', ylabel='true class', title=title)
    figure.colorbar(image, ax=axes, shrink=0.8, label='share of the true class')
    return figure
