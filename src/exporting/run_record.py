"""What an experiment recorded of the model that it trained: settings, scores, command."""
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.experiments import Settings, read_settings
from reports.scores import read_epochs
from training.environment import read_starts
from training.result_files import best_of, read_average, read_best_model, read_rows
from training.saved_models import AVERAGED, BEST, name_of_epoch
from utilities.errors import DataError
from utilities.stats import FURTHER_METRICS

MetricValues = dict[str, float]  # name of a metric -> value

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """What is known of the run that a checkpoint comes from.

    Attributes:
        settings: the options of run.py.
        environment: what environment.json says of its last start: command, versions, commit; {}
            if that is not known.
        model_label: which of its models it is: epoch 3 of 25; '' if that is not known.
        is_best: whether it is the model of the best epoch.
        validation, test: scores on the two sets; {} if they are not known.
    """
    settings: Settings
    environment: dict[str, Any]
    model_label: str
    is_best: bool
    validation: MetricValues
    test: MetricValues


def read_run(checkpoint: Path) -> RunRecord | None:
    """Return the record of the run of a checkpoint EXP_DIR/models/NAME.pth, or None.

    A record that cannot be read is left out with a warning.
    """
    checkpoint = checkpoint.absolute()
    exp_dir = checkpoint.parent.parent
    if checkpoint.parent.name != 'models' or not (exp_dir / 'args.json').is_file():
        return None
    try:
        settings = read_settings(exp_dir)
        model, validation = _validation_scores(exp_dir, checkpoint.stem, settings)
        is_best = checkpoint.stem == BEST
        test = _test_scores(exp_dir, settings['metrics']) if is_best else {}
        starts = read_starts(exp_dir)
        environment = starts[-1] if starts else {}
        return RunRecord(settings, environment, model, is_best, validation, test)
    except (DataError, OSError, ValueError) as error:
        logger.warning('settings and scores are left out of the card: %s', error)
        return None


def _validation_scores(exp_dir: Path, name: str, settings: Settings) -> tuple[str, MetricValues]:
    """Return what the model of this name is (epoch 3 of 25), and its validation scores."""
    metric = settings['metrics']
    if name == AVERAGED and (average := read_average(exp_dir)):
        which = f'mean of the weights of epochs {settings["wa_start"]} to {settings["wa_end"]}'
        return which, _known_scores(average._asdict(), metric)
    if not (exp_dir / 'result.csv').exists():
        return '', {}
    best = 1 + best_of(read_rows(exp_dir / 'result.csv'))
    for epoch, values in enumerate(read_epochs(exp_dir, metric), 1):
        if name == name_of_epoch(epoch) or (name == BEST and epoch == best):
            return f'epoch {epoch} of {settings["n_epochs"]}', _known_scores(values, metric)
    return '', {}


def _test_scores(exp_dir: Path, metric: str) -> MetricValues:
    """Return the scores of the best model on the test set, if there is one."""
    row = read_best_model(exp_dir)
    if row is None:
        return {}
    return _known_scores({metric: row.test_metric, 'mAUC': row.test_mAUC}, metric)


def _known_scores(values: MetricValues, metric: str) -> MetricValues:
    """Return the standard metrics alone.

    precision and recall of result.csv are those of the published code's own rule.
    """
    names = dict.fromkeys((metric, 'mAP', 'mAUC', 'd_prime', *FURTHER_METRICS))
    return {name: values[name] for name in names if math.isfinite(values.get(name, math.nan))}
