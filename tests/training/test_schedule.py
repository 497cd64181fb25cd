"""The learning rate of every step."""
import math

import pytest
import torch

from small_model import settings
from training.options import make_parser
from training.schedule import PATIENCE, Schedule


def make_schedule(chosen, *scales, total_steps=100):
    """Return a schedule, and the parameter groups whose rates it sets: one for each lr_scale."""
    groups = [{'params': [torch.zeros(1)], 'lr_scale': scale} for scale in scales or [1.0]]
    optimizer = torch.optim.SGD(groups, chosen.lr)
    return Schedule(optimizer, chosen, total_steps), optimizer.param_groups


def rates(chosen, metrics, steps=1):
    """Return the learning rate of every step, over epochs that reach these metrics."""
    schedule, groups = make_schedule(chosen, total_steps=steps * len(metrics))
    seen = []
    for epoch, metric in enumerate(metrics, start=1):
        for _ in range(steps):
            schedule.start_step()
            assert schedule.last_rate == groups[0]['lr']
            seen.append(schedule.last_rate)
        schedule.end_epoch(epoch, metric)
    return seen


@pytest.mark.parametrize('changes, epochs, expected', [
    ({'lr': 1e-5}, 5, [1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6]),
    ({'lr': 5e-5, 'lrscheduler_start': 10, 'lrscheduler_step': 5}, 21,
     [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6]),
    ({'lr': 1e-5, 'lrscheduler_start': 5, 'lrscheduler_decay': 0.85}, 25,
     [1e-5] * 5 + [1e-5 * 0.85 ** n for n in range(1, 21)])],
    ids=['AudioSet', 'balanced AudioSet', 'ESC-50'])
def test_epochs_run_at_the_published_rates(changes, epochs, expected):
    seen = rates(settings(**changes), [0.5] * epochs)
    assert seen == pytest.approx(expected, rel=1e-9)


def test_epoch_22_of_esc50_runs_at_the_published_rate():
    seen = rates(settings(lr=1e-5, lrscheduler_start=5, lrscheduler_decay=0.85), [0.5] * 22)
    assert seen[-1] == pytest.approx(1e-5 * 0.85 ** 17)


def test_warmup_rises_linearly_from_0_over_1000_steps():
    seen = rates(settings(lr=1e-3, warmup=True), [0.5], steps=1200)
    assert seen == pytest.approx([1e-3 * min(1, step / 1000) for step in range(1200)])


def test_warmup_is_a_factor_on_the_schedule():
    seen = rates(settings(lr=1e-3, warmup=True, lrscheduler_start=1), [0.5] * 3, steps=400)
    assert (seen[399], seen[400], seen[800]) == pytest.approx((0.399e-3, 0.2e-3, 0.2e-3))


def test_a_cosine_falls_from_the_end_of_the_warmup_to_the_lowest_rate():
    chosen = settings(lr=1e-3, schedule='cosine', min_lr=1e-4, warmup_epochs=1, n_epochs=5)
    seen = rates(chosen, [0.5] * 5, steps=4)
    falling = [1e-4 + 9e-4 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(16)]
    assert seen == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, *falling])


def test_a_warmup_that_is_longer_than_the_run_is_said(caplog):
    caplog.set_level('INFO')
    make_schedule(settings(lr=1e-3, warmup=True), total_steps=1001)
    assert not caplog.text
    make_schedule(settings(lr=1e-3, warmup=True), total_steps=850)
    assert 'the warm-up takes 1000 steps and the whole run 850' in caplog.text


def test_a_cosine_under_way_is_stretched_without_a_jump_to_the_new_last_step(caplog):
    caplog.set_level('INFO')
    chosen = settings(lr=1e-3, schedule='cosine')
    short, _ = make_schedule(chosen, total_steps=10)
    for _ in range(5):
        short.start_step()
    longer, _ = make_schedule(chosen, total_steps=20)
    longer.load_state_dict(short.state_dict())
    longer.finish_at(20)
    assert longer.rate_at(5) == pytest.approx(short.rate_at(5)) == pytest.approx(5e-4)
    stretched = [longer.rate_at(step) for step in range(5, 21)]
    assert stretched == sorted(stretched, reverse=True)
    assert stretched[-1] == pytest.approx(0, abs=1e-12)
    assert 'is stretched from step 5 on: it stands at 0.0005' in caplog.text


def test_a_plateau_decays_the_rate_instead_of_the_epochs():
    metrics = [0.1, 0.2, 0.3, 0.3, 0.2, 0.4, 0.5]
    seen = rates(settings(lr=1e-3, lr_patience=1, lrscheduler_start=1), metrics)
    assert seen == pytest.approx([1e-3] * 5 + [5e-4] * 2)


def test_a_plateau_without_a_number_of_its_own_waits_for_two_epochs_as_the_help_says():
    chosen = settings(lr=1e-3, schedule='plateau', lr_patience=0)
    assert rates(chosen, [0.5] * 5) == pytest.approx([1e-3] * 4 + [5e-4])
    help_texts = {action.dest: action.help for action in make_parser()._actions}
    assert f'0 means {PATIENCE};' in help_texts['lr_patience']


def test_a_rise_below_one_in_ten_thousand_does_not_keep_a_plateau_from_decaying():
    chosen, metrics = settings(lr=1e-3, lr_patience=1), [0.5, 0.50001, 0.50002, 0.50003]
    assert rates(chosen, metrics) == pytest.approx([1e-3] * 3 + [5e-4])


def test_a_plateau_under_warmup_decays_the_full_rate():
    seen = rates(settings(lr=1e-3, lr_patience=1, warmup=True), [0.3, 0.2, 0.1, 0.1], steps=400)
    assert (seen[800], seen[1100], seen[1200]) == pytest.approx((0.8e-3, 1e-3, 0.5e-3))


def test_a_plateau_that_continues_with_other_options_obeys_them():
    schedule, _ = make_schedule(settings(lr=1e-3, lr_patience=5))
    schedule.end_epoch(1, 0.5)
    forced, _ = make_schedule(settings(lr=1e-3, lr_patience=1, lrscheduler_decay=0.1))
    forced.load_state_dict(schedule.state_dict())
    for epoch in (2, 3):
        forced.end_epoch(epoch, 0.5)
    assert forced.last_rate == pytest.approx(1e-4)


def test_a_checkpoint_of_an_earlier_version_without_a_plateau_is_read():
    schedule, _ = make_schedule(settings(lr=1e-3))
    schedule.load_state_dict({'decay': 0.25, 'step': 7, 'plateau': None})
    assert schedule.step == 7 and schedule.last_rate == pytest.approx(2.5e-4)


@pytest.mark.parametrize('changes, rates', [
    ({}, [1e-3, 5e-4, 2.5e-4, 1.25e-4]), ({'lr_patience': 1}, [1e-3, 1e-3, 1e-3, 5e-4])],
    ids=['steps', 'plateau'])
def test_every_parameter_group_has_its_own_scale_of_the_rate(changes, rates):
    chosen = settings(lr=1e-3, lrscheduler_start=1, **changes)
    schedule, groups = make_schedule(chosen, 0.25, 1.0)
    for epoch, expected in enumerate(rates, start=1):
        schedule.start_step()
        assert schedule.last_rate == pytest.approx(expected)
        assert [group['lr'] for group in groups] == pytest.approx([0.25 * expected, expected])
        schedule.end_epoch(epoch, 1 / epoch)


@pytest.mark.parametrize('changes', [{}, {'lr_patience': 1}, {'warmup': True}],
                         ids=['steps', 'plateau', 'warmup'])
def test_a_schedule_that_goes_on_has_the_rates_of_one_that_did_not_stop(changes):
    chosen, metrics = settings(lr=1e-3, **changes), [0.3, 0.2, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1]
    schedule, _ = make_schedule(chosen)
    seen = []
    for epoch, metric in enumerate(metrics, start=1):
        schedule.start_step()
        state = schedule.state_dict()
        schedule, _ = make_schedule(chosen)  # stopped in the middle of an epoch
        schedule.load_state_dict(state)
        seen.append(schedule.last_rate)
        schedule.end_epoch(epoch, metric)
    assert seen == rates(chosen, metrics)
