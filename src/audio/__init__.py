"""Recordings to waveforms to fbanks, and the augmentation of both. Nothing here needs a dataset."""

# Sample rates in Hz that a recording may have. Near the highest, that of the fastest converters,
# resampling to 16 kHz takes up to 0.7 GB and 3 s, however short the file; from the lowest it makes
# 160 samples of one. They stand here so that a program can check its options without torch.
MIN_RATE, MAX_RATE = 100, 768_000
