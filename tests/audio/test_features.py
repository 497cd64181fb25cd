"""Waveforms to fbanks, and the augmentation of both."""
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchaudio

import golden
from audio.augmentation import (
    MAX_NOISE,
    Augmentation,
    AugmentationConf,
    add_noise_and_roll,
    draw_augmentation,
    draw_noise,
    mix,
    spec_augment,
)
from audio.fbank import SAMPLE_RATE, fbank, fit_frames, normalise

BINS, FRAMES = 128, 1024


def golden_waveform(name, seconds):
    """Return a waveform of golden.py as a reader of its 16-bit file gets it."""
    return torch.from_numpy(golden.waveform(name, seconds)).float() / 32768


def tone(hertz, seconds, rate):
    """Return a sine (samples,) of amplitude 0.4."""
    return 0.4 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)


def draw(seed=0, **changes):
    """Draw an Augmentation from a seed, with everything on, but for the changes."""
    settings = {'num_mel_bins': BINS, 'target_length': FRAMES, 'mixup': 0.5, 'freqm': 48,
                'timem': 192, 'noise': True}
    conf = AugmentationConf(**{**settings, **changes})
    return draw_augmentation(np.random.default_rng(seed), conf, samples=10)


def draws(**changes):
    """Draw two thousand Augmentations."""
    return [draw(seed, **changes) for seed in range(2000)]


def test_fbank_ignores_a_constant_offset():
    waveform = golden_waveform('w05', 0.5)
    moved = fbank(waveform + 0.25, BINS)
    torch.testing.assert_close(moved, fbank(waveform, BINS), atol=0.02, rtol=0)
    assert fbank(waveform, 64).shape == (48, 64)


@pytest.mark.parametrize('samples, frames', [(1, 0), (399, 0), (400, 1), (559, 1), (560, 2)])
def test_frames_are_whole_windows_of_25_ms(samples, frames):
    assert fbank(golden_waveform('w05', 0.5)[:samples], BINS).shape == (frames, BINS)


@pytest.mark.parametrize('frames', [0, 3, 5, 9])
def test_frames_are_cut_or_filled_up_with_zeros(frames):
    fitted = fit_frames(torch.ones(frames, 4), 5)
    assert fitted.shape == (5, 4)
    assert fitted.sum(dim=1).tolist() == [4.0] * min(frames, 5) + [0.0] * (5 - min(frames, 5))


def test_normalising_gives_zero_mean_and_half_a_standard_deviation():
    noise = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    values = normalise(noise * 4.5 - 4.2, -4.2, 4.5)
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(0.5, abs=0.01)


def test_a_long_and_a_short_recording_mix_as_published(golden_json):
    case = golden_json('data.json')['mixup_long_short']
    mixed = mix(golden_waveform('w10', 10), golden_waveform('w1', 1), case['lam'])
    measured = golden.digest(fit_frames(fbank(mixed, BINS), case['target_length']))
    assert measured['n'] == case['raw_fbank']['n']
    assert measured['val'] == pytest.approx(case['raw_fbank']['val'], abs=1e-3)
    assert measured['abs_sum'] == pytest.approx(case['raw_fbank']['abs_sum'], rel=1e-5)


@pytest.mark.parametrize('length', [30, 100, 170])
def test_mixup_pads_or_cuts_the_partner_after_removing_its_mean(length):
    rng = np.random.default_rng(0)
    first, second = rng.random(100).astype(np.float32), rng.random(length).astype(np.float32) + 3
    partner = np.zeros(100)
    partner[:min(length, 100)] = (second - second.mean())[:100]
    expected = 0.7 * (first - first.mean()) + 0.3 * partner
    mixed = mix(torch.from_numpy(first), torch.from_numpy(second), 0.7)
    assert mixed.shape == (100,)
    np.testing.assert_allclose(mixed, expected - expected.mean(), atol=1e-6)


def test_a_mix_has_no_mean():
    mixed = mix(torch.rand(100) + 1, torch.rand(30) - 5, 0.4)
    assert float(mixed.mean()) == pytest.approx(0, abs=1e-6)


def test_the_same_generator_draws_the_same_augmentation():
    assert [draw(seed) for seed in range(20)] == [draw(seed) for seed in range(20)]
    assert len({draw(seed) for seed in range(20)}) == 20


def test_nothing_is_drawn_if_nothing_is_asked_for():
    nothing = draw(mixup=0, freqm=0, timem=0, noise=False)
    frames = torch.rand(FRAMES, BINS)
    assert (nothing.partner, nothing.lam) == (None, 1.0)
    masked = spec_augment(frames, nothing)
    assert torch.equal(add_noise_and_roll(masked, None, nothing.roll), frames)


def test_partners_are_uniform_and_as_frequent_as_mixup_says():
    partners = [a.partner for a in draws(mixup=0.3) if a.partner is not None]
    assert len(partners) == pytest.approx(600, abs=80)
    expected = np.full(10, len(partners) / 10)
    assert np.bincount(partners, minlength=10) == pytest.approx(expected, rel=0.5)


def test_lambda_follows_beta_10_10_if_a_sample_is_mixed_and_is_1_if_not():
    drawn = draws(mixup=0.5)
    lams = [a.lam for a in drawn if a.partner is not None]
    assert {a.lam for a in drawn if a.partner is None} == {1.0}
    assert np.mean(lams) == pytest.approx(0.5, abs=0.02)
    assert np.std(lams) == pytest.approx((1 / 84) ** 0.5, abs=0.01)


@pytest.mark.parametrize('kind, limit, size', [('freq_mask', 48, BINS), ('time_mask', 192, FRAMES),
                                               ('time_mask', FRAMES, FRAMES)])
def test_masks_stay_within_their_limit_and_reach_both_edges(kind, limit, size):
    starts, widths = np.array([getattr(a, kind) for a in draws(timem=limit)]).T
    assert widths.min() == 0 and limit - 3 <= widths.max() <= limit
    assert starts.min() == 0 and size - 3 <= (starts + widths).max() <= size


def test_a_mask_is_no_wider_than_the_input():
    assert all(a.time_mask[1] <= 32 for a in draws(timem=500, target_length=32))


def test_masks_fill_one_band_and_one_stretch_with_zero():
    before = torch.rand(20, 16) + 1
    masked = spec_augment(before, Augmentation(freq_mask=(3, 4), time_mask=(15, 5)))
    expected = before.clone()
    expected[:, 3:7] = 0
    expected[15:20] = 0
    assert torch.equal(masked, expected)
    assert before.min() >= 1


def test_noise_and_roll_stay_within_their_ranges():
    drawn = draws()
    noises, rolls = [a.noise for a in drawn], [a.roll for a in drawn]
    assert 0 <= min(noises) < 0.001 and 0.099 < max(noises) < MAX_NOISE == 0.1
    assert set(rolls) == set(range(-10, 10))


def test_noise_is_uniform_up_to_its_loudness():
    conf = AugmentationConf(target_length=200, num_mel_bins=100)
    noise = draw_noise(Augmentation(noise=0.08, noise_seed=1), conf)
    assert noise.shape == (200, 100)
    assert 0 <= float(noise.min()) and float(noise.max()) < 0.08
    assert float(noise.mean()) == pytest.approx(0.04, abs=0.001)
    assert not torch.equal(noise, draw_noise(Augmentation(noise=0.08, noise_seed=2), conf))
    frames = torch.rand(200, 100)
    assert torch.equal(add_noise_and_roll(frames, noise, 0), frames + noise)


@pytest.mark.parametrize('roll', [-10, 0, 9])
def test_rolling_moves_frames_around_the_end(roll):
    frames = torch.arange(30.0)[:, None].expand(30, 4)
    rolled = add_noise_and_roll(frames, None, roll)
    assert rolled[:, 0].tolist() == [(i - roll) % 30 for i in range(30)]


@pytest.mark.parametrize('bins', [4, 23, 40, 128, 250])
@pytest.mark.parametrize('sound', [golden_waveform('w05', 0.5), tone(440, 1, 16000),
                                   torch.zeros(16000), 0.3 + 1e-4 * torch.arange(4001) % 7])
def test_fbank_is_that_of_torchaudio(sound, bins):
    expected = torchaudio.compliance.kaldi.fbank(
        (sound - sound.mean()).unsqueeze(0), htk_compat=True, sample_frequency=SAMPLE_RATE,
        use_energy=False, window_type='hanning', num_mel_bins=bins, dither=0.0, frame_length=25,
        frame_shift=10)
    torch.testing.assert_close(fbank(sound, bins), expected, atol=1e-5, rtol=0)


def test_fbank_of_a_batch_is_that_of_each():
    batch = torch.randn(2, 3, 8000, generator=torch.Generator().manual_seed(0))
    whole = fbank(batch, 64)
    assert whole.shape == (2, 3, 48, 64)
    torch.testing.assert_close(whole[1, 2], fbank(batch[1, 2], 64), atol=1e-4, rtol=0)


@pytest.mark.parametrize('set_up', ["torch.set_float32_matmul_precision('medium')",
                                    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
                                    'torch.backends.cuda.matmul.allow_tf32 = True'])
def test_fbanks_leave_alone_how_the_caller_multiplies_matrices(root, set_up):
    if 'fp32_precision' in set_up and not hasattr(torch.backends.cuda.matmul, 'fp32_precision'):
        pytest.skip(f'torch {torch.__version__} has no fp32_precision')
    code = f"""
import torch
from audio import fbank as features
{set_up}
def said():
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError as error:
        return str(error)
before = said()
features.fbank(torch.rand(16000), 128)
with features._without_tf32():  # as on a GPU
    pass
assert said() == before
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root / 'src')
