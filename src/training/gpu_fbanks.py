"""Leave the fbanks of a batch to a GPU (--features gpu). Data workers then only read waveforms."""
from collections.abc import Sequence
from typing import NamedTuple

import torch

from audio.augmentation import Augmentation, draw_noise
from audio.fbank import count_frames, fbank, window_samples
from dataloader import AudioConf, AudiosetDataset, finish_fbank
from training.devices import move


class WaveformSample(NamedTuple):
    """A sample before its fbank."""
    waveform: torch.Tensor  # (samples of target_length frames,), padded with zeros
    frames: int  # frames of its fbank, without those of the padding
    augmentation: Augmentation
    noise: torch.Tensor | None  # (target_length, num_mel_bins)


class WaveformBatch(NamedTuple):
    """A batch before its fbanks. A DataLoader pins its tensors, because it is a tuple."""
    waveforms: torch.Tensor  # (B, samples)
    frames: list[int]
    augmentations: list[Augmentation]
    noise: torch.Tensor | None  # (B, target_length, num_mel_bins)
    conf: AudioConf  # of the dataset

    def compute_fbanks(self, device: torch.device) -> torch.Tensor:
        """Return the fbanks (B, target_length, num_mel_bins), computed on a device."""
        fbanks = fbank(move(self.waveforms, device), self.conf.num_mel_bins)
        noise: Sequence[torch.Tensor | None] = [None] * len(fbanks)
        if self.noise is not None:
            noise = list(move(self.noise, device))
        samples = zip(fbanks, self.frames, self.augmentations, noise, strict=True)
        return torch.stack([finish_fbank(features[:frames], self.conf, augmentation, its_noise)
                            for features, frames, augmentation, its_noise in samples])


def fbanks_on(inputs: torch.Tensor | WaveformBatch, device: torch.device) -> torch.Tensor:
    """Return the fbanks (B, target_length, num_mel_bins) of a batch on a device.

    Args:
        inputs: the fbanks, or the WaveformBatch that they are computed from there.
    """
    if isinstance(inputs, WaveformBatch):
        return inputs.compute_fbanks(device)
    return move(inputs, device)


class WaveformDataset(AudiosetDataset):
    """An AudiosetDataset whose samples are (WaveformSample, labels), its batches WaveformBatches.

    Its fbanks are those of an AudiosetDataset, up to rounding.
    """

    def make_sample(self, index, augmentation):
        """Return the sample of one recording."""
        waveform = self.load_waveform(index, augmentation)
        # fbank() subtracts the mean, too, but here the waveform is not cut or padded yet.
        waveform = waveform - waveform.mean()
        padding = window_samples(self.conf.target_length) - len(waveform)
        padded = torch.nn.functional.pad(waveform, (0, padding))  # a negative number cuts
        sample = WaveformSample(padded, count_frames(len(waveform)), augmentation,
                                draw_noise(augmentation, self.conf))
        return sample, self.make_targets(index, augmentation)

    def collate(self, samples):
        """Make a batch (WaveformBatch, labels (B, classes)) of samples."""
        inputs, labels = zip(*samples, strict=True)
        waveforms, frames, augmentations, noise = zip(*inputs, strict=True)
        stacked = None if any(one is None for one in noise) else torch.stack(noise)
        batch = WaveformBatch(torch.stack(waveforms), list(frames), list(augmentations), stacked,
                              self.conf)
        return batch, torch.stack(labels)
