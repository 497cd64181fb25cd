"""The order of an epoch."""
import numpy as np
import pytest

from training.sampler import EpochSampler


def order_of(seed, epoch):
    """Return the indices of an epoch in their order."""
    sampler = EpochSampler(100, seed)
    sampler.set_epoch(epoch)
    return tuple(key.index for key in sampler)


def test_an_epoch_visits_every_sample_once():
    keys = list(EpochSampler(100, 0))
    assert sorted(key.index for key in keys) == list(range(100))
    assert [key.position for key in keys] == list(range(100))


def test_the_order_depends_on_seed_and_epoch_alone():
    assert order_of(1, 2) == order_of(1, 2)
    assert len({order_of(1, 2), order_of(1, 3), order_of(2, 2), order_of(2, 3)}) == 4


def test_weighted_draws_follow_the_weights():
    drawn = [key.index for key in EpochSampler(20000, 0, np.r_[3.0, 1.0, np.zeros(19998)])]
    assert len(drawn) == 20000
    assert np.bincount(drawn, minlength=2) / 20000 == pytest.approx([0.75, 0.25], abs=0.01)
