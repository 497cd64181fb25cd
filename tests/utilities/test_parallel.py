"""Cores, and work on many files with all of them."""
import operator
import os

import pytest
import torch

from utilities.parallel import available_cores, limit_threads, parallel_map


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'),
                    reason='this system does not bind processes to cores')
def test_available_cores_are_those_that_the_job_may_use():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [min(cores)])
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_results_come_in_the_order_of_the_items():
    assert list(parallel_map(operator.neg, list(range(100)), 'testing')) == [-i for i in range(100)]


def test_an_error_in_a_process_is_raised():
    with pytest.raises(TypeError):
        list(parallel_map(operator.neg, ['text'], 'testing'))


def test_threads_are_limited_to_the_cores_of_a_quota(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr('utilities.parallel.available_cores', lambda: 1)
    try:
        torch.set_num_threads(2)
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
