"""Recordings to waveforms to fbanks, and the augmentation of both. Nothing here needs a dataset."""

# Lowest and highest sample rate that a recording may have, in Hz. From the lowest, resampling to
# 16 kHz makes 160 samples of each sample. The highest is that of the fastest converters. Near it,
# resampling takes up to 0.7 GB and 3 s, however short the file is. Both stand here so that a
# program can check its options without torch.
MIN_RATE, MAX_RATE = 100, 768_000
