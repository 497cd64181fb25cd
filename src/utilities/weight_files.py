"""Weight files, by which training draws samples: one number per sample, beside the datafile."""
from pathlib import Path

import numpy as np

from utilities.errors import DataError, error_reason
from utilities.tables import read_numbers

SCALE, SMOOTHING = 1000, 0.01
WEIGHT_RULE = (f'the sum over its labels of {SCALE} / (samples with that label + {SMOOTHING}), '
               f'where samples without labels count as one more class')


def weight_file(datafile: str | Path) -> Path:
    """Return the path of a datafile's weight file: `<datafile without .json>_weight.csv`."""
    return Path(str(datafile).removesuffix('.json') + '_weight.csv')


def read_sample_weights(path: str | Path, samples: int) -> np.ndarray:
    """Read the weights of a number of samples, (samples,) float64.

    Raises:
        DataError: if the file is missing, malformed or not of this datafile.
    """
    try:
        weights = read_numbers(path, ndmin=1)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read the weight file {path}: {error_reason(error)}; it holds, '
                        f'for each sample, {WEIGHT_RULE}') from None
    fits = (weights.shape == (samples,) and np.isfinite(weights).all() and (weights >= 0).all()
            and weights.any())
    if not fits:
        raise DataError(f'the weight file {path} must hold {samples} non-negative numbers, one for '
                        f'each sample of its datafile ({WEIGHT_RULE}), got shape {weights.shape}')
    return weights
