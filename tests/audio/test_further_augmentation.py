"""Augmentation that the published code does not have, by hand; and that it moves no earlier draw."""
import math

import numpy as np
import pytest
import torch

from audio.augmentation import (
    Augmentation,
    AugmentationConf,
    add_background,
    augment_waveform,
    draw_augmentation,
    mix_fbanks,
    spec_augment,
)
from audio.fbank import fbank, normalise

PUBLISHED = {'num_mel_bins': 128, 'target_length': 1024, 'mixup': 0.5, 'freqm': 48, 'timem': 192,
             'noise': True}
FURTHER = {'gain_db': 6.0, 'shift_frames': 20, 'freq_masks': 3, 'time_masks': 2, 'crop': 'random',
           'noise_dir': 'noise', 'spec_mixup': 0.5}


def draw(seed=0, **changes):
    """Draw an Augmentation from a seed."""
    conf = AugmentationConf(**{**PUBLISHED, **changes})
    return draw_augmentation(np.random.default_rng(seed), conf, samples=10)


def draws(**changes):
    """Draw a thousand Augmentations."""
    return [draw(seed, **changes) for seed in range(1000)]


def test_what_a_seed_drew_before_there_was_more_to_draw_it_draws_now():
    # Printed by the code of commit 9512eda.
    assert draw(3) == Augmentation(
        partner=1, lam=0.5697390246590057, freq_mask=(16, 22), time_mask=(100, 141),
        noise=0.03912281904956621, noise_seed=4766086950709116918, roll=-6)
    assert draw(4) == Augmentation(
        partner=None, lam=1.0, freq_mask=(100, 24), time_mask=(612, 15),
        noise=0.03764865843772726, noise_seed=7396233168832988349, roll=1)


def test_what_is_off_draws_nothing():
    for changes in ({}, {'noise': False}):
        rng, expected = np.random.default_rng(1), np.random.default_rng(1)
        conf = AugmentationConf(**{**PUBLISHED, 'mixup': 0, **changes})
        draw_augmentation(rng, conf, samples=10)
        expected.random(5)  # whether it is mixed, and two numbers for each mask
        if conf.noise:
            expected.random(), expected.integers(2 ** 63), expected.integers(-10, 10)
        assert rng.random() == expected.random()


@pytest.mark.parametrize('name', FURTHER)
def test_further_augmentation_leaves_the_earlier_draws_alone(name):
    earlier = ('freq_mask', 'time_mask', 'noise', 'noise_seed', 'roll')
    for seed in range(50):
        before, now = draw(seed), draw(seed, **{name: FURTHER[name]})
        assert all(getattr(before, one) == getattr(now, one) for one in earlier)
        if before.partner is not None:
            assert (before.partner, before.lam) == (now.partner, now.lam)
    assert [draw(seed) for seed in range(50)] != [draw(seed, **{name: FURTHER[name]})
                                                  for seed in range(50)]


def test_gain_and_shift_are_uniform_within_their_limits_and_reach_both():
    drawn = draws(gain_db=6.0, shift_frames=3)
    gains = np.array([one.gain_db for one in drawn])
    assert -6 <= gains.min() < -5.9 and 5.9 < gains.max() <= 6
    assert gains.mean() == pytest.approx(0, abs=0.4)
    assert gains.std() == pytest.approx(12 / math.sqrt(12), rel=0.05)
    counts = np.bincount([one.shift + 3 for one in drawn])
    assert len(counts) == 7 and counts == pytest.approx(np.full(7, 1000 / 7), rel=0.3)


def test_a_gain_changes_every_log_energy_by_the_same(make_tone):
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    louder = augment_waveform(waveform, Augmentation(gain_db=6.0))
    torch.testing.assert_close(louder, waveform * 10 ** 0.3)
    difference = fbank(louder, 64) - fbank(waveform, 64)
    assert difference == pytest.approx(0.6 * math.log(10), abs=1e-3)


def test_further_masks_are_as_many_as_asked_for_and_like_the_first():
    drawn = draws(freq_masks=3, time_masks=2)
    assert {(len(one.more_freq_masks), len(one.more_time_masks)) for one in drawn} == {(2, 1)}
    starts, widths = np.array([mask for one in drawn for mask in one.more_freq_masks]).T
    assert widths.min() == 0 and 45 <= widths.max() <= 48
    assert starts.min() == 0 and 125 <= (starts + widths).max() <= 128


def test_every_mask_is_filled_with_zero():
    before = torch.rand(20, 16) + 1
    masks = Augmentation(freq_mask=(3, 2), time_mask=(0, 1), more_freq_masks=((4, 3), (15, 1)),
                         more_time_masks=((10, 2),))
    expected = before.clone()
    expected[:, 3:7] = expected[:, 15] = expected[0] = expected[10:12] = 0
    assert torch.equal(spec_augment(before, masks), expected)


def test_fbanks_are_mixed_as_often_as_asked_for_and_never_after_waveforms():
    drawn = draws(mixup=0.5, spec_mixup=0.4)
    mixed = [one for one in drawn if one.mixes_fbanks]
    assert len(mixed) == pytest.approx(0.5 * 0.4 * 1000, abs=40)
    assert sum(one.partner is not None for one in drawn) == pytest.approx(700, abs=50)
    lams = [one.lam for one in draws(mixup=0, spec_mixup=1.0)]
    assert np.mean(lams) == pytest.approx(0.5, abs=0.02)
    assert np.std(lams) == pytest.approx((1 / 84) ** 0.5, abs=0.01)  # of Beta(10, 10)
    partners = [one.partner for one in draws(mixup=0, spec_mixup=1.0)]
    assert np.bincount(partners, minlength=10) == pytest.approx(np.full(10, 100), rel=0.4)


def test_a_mix_of_fbanks_is_that_of_the_normalised_ones():
    first, second = torch.rand(2, 20, 16)
    mixed = normalise(mix_fbanks(first, second, 0.3), -4.0, 3.0)
    expected = 0.3 * normalise(first, -4.0, 3.0) + 0.7 * normalise(second, -4.0, 3.0)
    torch.testing.assert_close(mixed, expected)


def test_crops_and_backgrounds_are_anywhere():
    drawn = draws(crop='random', noise_dir='noise', snr_db=(5.0, 15.0))
    for name, low, high in (('crop', 0, 1), ('partner_crop', 0, 1), ('background', 0, 1),
                            ('background_crop', 0, 1), ('snr_db', 5, 15)):
        values = np.array([getattr(one, name) for one in drawn])
        assert low <= values.min() and values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, rel=0.1)
        assert values.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.1)
    assert len({one.crop for one in drawn} & {one.partner_crop for one in drawn}) == 0
    assert {one.snr_db for one in draws(noise_dir='noise', snr_db=(7.0, 7.0))} == {7.0}


@pytest.mark.parametrize('snr_db', [-5.0, 0.0, 20.0])
@pytest.mark.parametrize('length', [3000, 16000, 40000])
def test_noise_is_as_loud_as_the_ratio_says(snr_db, length):
    generator = torch.Generator().manual_seed(0)
    signal = torch.sin(torch.arange(16000) / 10) + 0.2
    noise = 3 * torch.randn(length, generator=generator) + 1
    added = add_background(signal, noise, snr_db) - (signal - signal.mean())
    ratio = (signal - signal.mean()).square().mean() / added.square().mean()
    assert 10 * math.log10(ratio) == pytest.approx(snr_db, abs=0.01)
    if length == 3000:  # it is repeated
        torch.testing.assert_close(added[:3000], added[3000:6000], atol=1e-5, rtol=0)


def test_silence_gets_no_noise_and_silent_noise_changes_nothing():
    signal = torch.rand(100)
    assert not add_background(torch.zeros(100), signal, 3.0).any()
    assert torch.equal(add_background(signal, torch.zeros(7), 3.0), signal)


def test_a_gain_comes_after_the_noise():
    signal, noise = torch.randn(2, 1000)
    both = augment_waveform(signal, Augmentation(gain_db=-3.0, snr_db=10.0), background=noise)
    torch.testing.assert_close(both, add_background(signal, noise, 10.0) * 10 ** (-3 / 20))
