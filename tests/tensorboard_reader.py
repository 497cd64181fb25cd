"""Read the log of an experiment as TensorBoard does, for the tests of runs that write one."""
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reports.experiments import read_further_metrics
from training.result_files import read_rows, result_columns

SPEED = 'samples per second'


def read_log(exp_dir):
    """Return {name: {step: value}}. Fail if a step comes twice or out of order."""
    log = EventAccumulator(str(exp_dir / 'tensorboard'), size_guidance={'scalars': 0}).Reload()
    read = {}
    for name in log.Tags()['scalars']:
        steps = [event.step for event in log.Scalars(name)]
        assert steps == sorted(set(steps)), (name, steps)
        read[name] = {event.step: event.value for event in log.Scalars(name)}
    return read


def check_log(exp_dir, epochs, metric):
    """Compare the log with result.csv and metrics.csv; return {epoch: samples per second}."""
    log, rows = read_log(exp_dir), read_rows(exp_dir / 'result.csv')
    expected = {**dict(zip(result_columns(metric), rows.T)), **read_further_metrics(exp_dir)}
    assert set(log) - {SPEED} == set(expected) and len(expected) > 10
    assert len(rows) == epochs
    for name, values in expected.items():
        assert list(log[name]) == list(range(1, epochs + 1)), name
        np.testing.assert_allclose(list(log[name].values()), values, rtol=1e-6, err_msg=name)
    return log.get(SPEED, {})
