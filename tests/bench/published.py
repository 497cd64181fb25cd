"""Compute features, training steps and metrics in the way of the published code, plainly.

It does what the published repository does, without the faults listed in README.md. The benchmarks
call it "published".
"""
import random

import numpy as np
import soundfile
import torch
import torchaudio
from scipy.stats import norm
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)
from torch.utils.data import Dataset

from models import ASTModel


def fbank(waveform, num_mel_bins):
    """Return torchaudio's fbank (frames, num_mel_bins) of a 16 kHz waveform (samples,)."""
    return torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0), htk_compat=True, sample_frequency=16000, use_energy=False,
        window_type='hanning', num_mel_bins=num_mel_bins, dither=0.0, frame_shift=10)


class PublishedDataset(Dataset):
    """Makes training samples of 16 kHz recordings, one at a time.

    Args:
        entries: (path, labels as 'mid,mid') of each recording.
        class_index: mid -> index.
        conf: an AudioConf.
    """

    def __init__(self, entries, class_index, conf):
        self.entries, self.class_index, self.conf = entries, class_index, conf

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        waveform, labels = self.read(index)
        if random.random() < self.conf.mixup:
            waveform, labels = self.mix(waveform, labels)
        features = self.fit(fbank(waveform, self.conf.num_mel_bins))
        features = features.T.unsqueeze(0)  # (1, bins, frames), as the masks expect it
        features = torchaudio.transforms.FrequencyMasking(self.conf.freqm)(features)
        features = torchaudio.transforms.TimeMasking(self.conf.timem)(features)
        return (features.squeeze(0).T - self.conf.mean) / (2 * self.conf.std), labels

    def mix(self, waveform, labels):
        """Mix a recording with a random one; return waveform and labels (mixup)."""
        second, second_labels = self.read(random.randint(0, len(self) - 1))
        lam = np.random.beta(10, 10)
        if len(second) < len(waveform):
            second = torch.cat([second, torch.zeros(len(waveform) - len(second))])
        waveform = lam * waveform + (1 - lam) * second[:len(waveform)]
        return waveform - waveform.mean(), lam * labels + (1 - lam) * second_labels

    def fit(self, features):
        """Cut features (frames, bins) to conf.target_length, or pad them with zeros."""
        missing = self.conf.target_length - len(features)
        if missing > 0:
            return torch.nn.ZeroPad2d((0, 0, 0, missing))(features)
        return features[:self.conf.target_length]

    def read(self, index):
        """Return a recording's waveform (samples,) without its mean, and its labels (classes,)."""
        path, mids = self.entries[index]
        samples, _ = soundfile.read(path, dtype='float32')
        waveform = torch.from_numpy(samples)
        labels = torch.zeros(len(self.class_index))
        for mid in mids.split(','):
            labels[self.class_index[mid]] = 1.0
        return waveform - waveform.mean(), labels


def make_model(**settings):
    """Return an ASTModel with random weights and plain attention: two products and a softmax."""
    model = ASTModel(imagenet_pretrain=False, verbose=False, **settings)
    for block in model.v.blocks:
        if not block.attn.fused_attn:
            raise SystemExit('timm has chosen plain attention itself, so there is nothing to '
                             'compare: is TIMM_FUSED_ATTN set to 0?')
        block.attn.fused_attn = False
    return model


class PublishedTrainer:
    """Trains with plain Adam, in float16 with a gradient scaler on a GPU, in float32 on a CPU.

    It waits for the loss of each step.
    """

    def __init__(self, model, device, loss, lr):
        self.model, self.device, self.loss_function = model.to(device).train(), device, loss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr, weight_decay=5e-7,
                                          betas=(0.95, 0.999))
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == 'cuda')

    def step(self, fbanks, labels):
        """Update the weights from a batch; return its loss, a number."""
        fbanks = fbanks.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.float16,
                            enabled=self.device.type == 'cuda'):
            loss = self.loss_function(self.model(fbanks), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


class PublishedEpochs:
    """Keeps the predictions of an experiment's epochs as text in a folder; computes the metrics.

    Args:
        targets: (samples, classes) of 0 and 1, with positives and negatives in every class.
    """

    def __init__(self, folder, targets):
        self.folder, self.epochs = folder, 0
        np.savetxt(folder / 'target.csv', targets, delimiter=',')

    def add(self, predictions, targets):
        """Write an epoch's predictions; return their metrics and those of the mean so far."""
        self.epochs += 1
        own = self.folder / f'predictions_{self.epochs}.csv'
        statistics = calculate_stats(predictions, targets)
        np.savetxt(own, predictions, delimiter=',')
        return statistics, self.ensemble(own)

    def ensemble(self, newest):
        """Return the metrics of the mean of all epochs so far. newest: file of the last one."""
        mean_file = self.folder / 'cum_predictions.csv'
        targets = np.loadtxt(self.folder / 'target.csv', delimiter=',')
        total = np.loadtxt(newest, delimiter=',')
        if self.epochs > 1:
            total = total + np.loadtxt(mean_file, delimiter=',') * (self.epochs - 1)
        mean = total / self.epochs
        np.savetxt(mean_file, mean, delimiter=',')
        return calculate_stats(mean, targets)


def calculate_stats(predictions, targets):
    """Return the metrics of each class, a list of dicts, by four calls of scikit-learn a class.

    Args:
        predictions, targets: (samples, classes).
    """
    statistics = []
    for target, prediction in zip(targets.T, predictions.T):
        precisions, recalls, _ = precision_recall_curve(target, prediction)
        false_positive_rates, _, _ = roc_curve(target, prediction)
        area = roc_auc_score(target, prediction)
        statistics.append({
            'AP': average_precision_score(target, prediction), 'auc': area,
            'precisions': precisions[::1000], 'recalls': recalls[::1000],
            'fpr': false_positive_rates[::1000], 'd_prime': 2 ** 0.5 * norm.ppf(area)})
    return statistics
