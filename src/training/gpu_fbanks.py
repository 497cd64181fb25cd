"""Leave the fbanks of a batch to a GPU (--features gpu). Data workers then only read waveforms."""
from collections.abc import Sequence
from typing import NamedTuple

import torch

from audio.augmentation import NO_AUGMENTATION, Augmentation, draw_noise
from audio.fbank import count_frames, fbank
from dataloader import AudioConf, AudiosetDataset, finish_fbank
from training.devices import move


class WaveformSample(NamedTuple):
    """A sample before its fbank."""
    waveform: torch.Tensor  # (samples of target_length frames,), padded with zeros
    frames: int  # frames of its fbank, without those of the padding
    augmentation: Augmentation
    noise: torch.Tensor | None  # (target_length, num_mel_bins)
    partner: 'WaveformSample | None' = None  # whose fbank is mixed with that of the sample


class WaveformBatch(NamedTuple):
    """A batch before its fbanks. A DataLoader pins its tensors, because it is a tuple."""
    waveforms: torch.Tensor  # (B + partners, samples): the B samples, then their mixing partners
    frames: list[int]  # of each waveform
    augmentations: list[Augmentation]
    noise: torch.Tensor | None  # (B, target_length, num_mel_bins)
    conf: AudioConf  # of the dataset

    def compute_fbanks(self, device: torch.device) -> torch.Tensor:
        """Return the fbanks (B, target_length, num_mel_bins), computed on a device."""
        conf = self.conf
        padded = fbank(move(self.waveforms, device), conf.num_mel_bins, conf.sample_rate)
        fbanks = [features[:frames] for features, frames in zip(padded, self.frames, strict=True)]
        count = len(self.augmentations)
        partners = iter(fbanks[count:])
        noise: Sequence[torch.Tensor | None] = [None] * count
        if self.noise is not None:
            noise = list(move(self.noise, device))
        return torch.stack([
            finish_fbank(features, self.conf, augmentation, its_noise,
                         next(partners) if augmentation.mixes_fbanks else None)
            for features, augmentation, its_noise in zip(fbanks, self.augmentations, noise)])


def inputs_on(inputs: torch.Tensor | WaveformBatch, device: torch.device) -> torch.Tensor:
    """Return the inputs of a batch on a device: fbanks (B, target_length, num_mel_bins).

    Args:
        inputs: a WaveformBatch, whose fbanks are computed on the device; or a tensor, which is only
            moved: fbanks, or with --cache_embeddings embeddings (B, dim).
    """
    if isinstance(inputs, WaveformBatch):
        return inputs.compute_fbanks(device)
    return move(inputs, device)


class WaveformDataset(AudiosetDataset):
    """An AudiosetDataset whose samples are (WaveformSample, labels), its batches WaveformBatches.

    Its fbanks are those of an AudiosetDataset, up to rounding.
    """

    def finish_sample(self, index, waveform, augmentation=NO_AUGMENTATION, partner=None):
        """Return the sample of a waveform."""
        other = None
        if partner is not None:
            other = WaveformSample(*self._pad(partner), NO_AUGMENTATION, None)
        sample = WaveformSample(*self._pad(waveform), augmentation,
                                draw_noise(augmentation, self.conf), other)
        frames = max(sample.frames, other.frames if other else 0)
        return self.with_labels(sample, index, augmentation, frames)

    def _pad(self, waveform):
        """Return a waveform padded to the input's length, and the frames of its fbank before."""
        # Here, since fbank() would take the mean over the zeros of the padding as well.
        waveform = waveform - waveform.mean()
        padding = self._window_samples - len(waveform)
        padded = torch.nn.functional.pad(waveform, (0, padding))  # a negative number cuts
        return padded, count_frames(len(waveform), self.conf.sample_rate)

    def collate(self, samples):
        """Make a batch (WaveformBatch, labels (B, classes)) of samples.

        With mask_padding, a third item has the real frames (B,).
        """
        inputs, labels, *lengths = zip(*samples, strict=True)
        sounds = [*inputs, *(one.partner for one in inputs if one.partner is not None)]
        noise = [one.noise for one in inputs]
        batch = WaveformBatch(
            torch.stack([one.waveform for one in sounds]), [one.frames for one in sounds],
            [one.augmentation for one in inputs],
            None if any(one is None for one in noise) else torch.stack(noise), self.conf)
        return batch, torch.stack(labels), *map(torch.tensor, lengths)
