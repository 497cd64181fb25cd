"""Recordings -> waveforms -> fbanks, and their augmentation. Needs no dataset."""

# Sample rates in Hz that a header may say. Near the highest, that of the fastest converters,
# resampling to 16 kHz takes up to 0.7 GB and 3 s, however short the file; from the lowest it makes
# 160 samples of one. Here, so that a program can check its options without importing torch.
MIN_RATE, MAX_RATE = 100, 768_000
