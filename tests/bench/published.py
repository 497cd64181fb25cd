"""The reference "published": how the published code goes about features, training and metrics, written out plainly.

Faults that bit its users are left out; what made it slow is the subject. Rules: the contract of this project.
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
    """Kaldi's fbank (frames, num_mel_bins) of a 16 kHz waveform (samples,), as torchaudio computes it."""
    return torchaudio.compliance.kaldi.fbank(
        waveform.unsqueeze(0), htk_compat=True, sample_frequency=16000, use_energy=False, window_type='hanning',
        num_mel_bins=num_mel_bins, dither=0.0, frame_shift=10)


class PublishedDataset(Dataset):
    """Training samples of 16 kHz recordings, everything done a sample at a time.

    entries: a list of (path, labels as 'mid,mid'); class_index: mid -> index; conf: an AudioConf.
    """

    def __init__(self, entries, class_index, conf):
        self.entries, self.class_index, self.conf = entries, class_index, conf

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, index):
        conf = self.conf
        waveform, labels = self.read(index)
        if random.random() < conf.mixup:
            second, second_labels = self.read(random.randint(0, len(self) - 1))
            lam = np.random.beta(10, 10)
            if len(second) < len(waveform):
                second = torch.cat([second, torch.zeros(len(waveform) - len(second))])
            waveform = lam * waveform + (1 - lam) * second[:len(waveform)]
            waveform = waveform - waveform.mean()
            labels = lam * labels + (1 - lam) * second_labels
        features = fbank(waveform, conf.num_mel_bins)
        missing = conf.target_length - len(features)
        features = torch.nn.ZeroPad2d((0, 0, 0, missing))(features) if missing > 0 else features[:conf.target_length]
        features = features.T.unsqueeze(0)  # (1, bins, frames), as the masks expect it
        features = torchaudio.transforms.FrequencyMasking(conf.freqm)(features)
        features = torchaudio.transforms.TimeMasking(conf.timem)(features)
        return (features.squeeze(0).T - conf.mean) / (2 * conf.std), labels

    def read(self, index):
        """Waveform without its mean (samples,) and labels (classes,) of a recording."""
        path, mids = self.entries[index]
        samples, _ = soundfile.read(path, dtype='float32')
        waveform = torch.from_numpy(samples)
        labels = torch.zeros(len(self.class_index))
        for mid in mids.split(','):
            labels[self.class_index[mid]] = 1.0
        return waveform - waveform.mean(), labels


def make_model(**settings):
    """An ASTModel with random weights whose attention is written out for all tokens: two products and a softmax."""
    model = ASTModel(imagenet_pretrain=False, verbose=False, **settings)
    for block in model.v.blocks:
        if not block.attn.fused_attn:
            raise SystemExit('timm chose plain attention already (TIMM_FUSED_ATTN=0?): there is nothing to compare')
        block.attn.fused_attn = False
    return model


class PublishedTrainer:
    """float16 with a gradient scaler on a GPU, float32 on a CPU; Adam as it comes; the loss fetched every step."""

    def __init__(self, model, device, loss, lr):
        self.model, self.device, self.loss_function = model.to(device).train(), device, loss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr, weight_decay=5e-7, betas=(0.95, 0.999))
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == 'cuda')

    def step(self, fbanks, labels):
        """One update from a batch. Returns its loss, a number."""
        fbanks = fbanks.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == 'cuda'):
            loss = self.loss_function(self.model(fbanks), labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()


class PublishedEpochs:
    """Predictions and metrics of an experiment's epochs, kept as text in a folder.

    targets: (samples, classes) of 0 and 1, with positives and negatives in every class.
    """

    def __init__(self, folder, targets):
        self.folder, self.epochs = folder, 0
        np.savetxt(folder / 'target.csv', targets, delimiter=',')

    def add(self, predictions, targets):
        """Take in an epoch. Returns the statistics of its predictions and of the mean of all epochs so far."""
        self.epochs += 1
        own = self.folder / f'predictions_{self.epochs}.csv'
        statistics = calculate_stats(predictions, targets)
        np.savetxt(own, predictions, delimiter=',')
        return statistics, self.ensemble(own)

    def ensemble(self, newest):
        """The statistics of the mean of all epochs so far, the last one's predictions in the file `newest`."""
        mean_file = self.folder / 'cum_predictions.csv'
        targets = np.loadtxt(self.folder / 'target.csv', delimiter=',')
        total = np.loadtxt(newest, delimiter=',')
        if self.epochs > 1:
            total = total + np.loadtxt(mean_file, delimiter=',') * (self.epochs - 1)
        mean = total / self.epochs
        np.savetxt(mean_file, mean, delimiter=',')
        return calculate_stats(mean, targets)


def calculate_stats(predictions, targets):
    """Four calls of scikit-learn a class, on (samples, classes). Returns a list with a dict a class."""
    statistics = []
    for k in range(targets.shape[1]):
        precisions, recalls, _ = precision_recall_curve(targets[:, k], predictions[:, k])
        false_positive_rates, _, _ = roc_curve(targets[:, k], predictions[:, k])
        area = roc_auc_score(targets[:, k], predictions[:, k])
        statistics.append({'AP': average_precision_score(targets[:, k], predictions[:, k]), 'auc': area,
                           'precisions': precisions[::1000], 'recalls': recalls[::1000],
                           'fpr': false_positive_rates[::1000], 'd_prime': 2 ** 0.5 * norm.ppf(area)})
    return statistics
