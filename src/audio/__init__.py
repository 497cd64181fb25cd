"""Recordings to waveforms to fbanks, and the augmentation of both. Nothing here needs a dataset."""

# Lowest and highest sample rate that a recording may have, in Hz. The fastest converters have the
# highest one. Near it, resampling to 16 kHz takes up to 0.7 GB and 3 s, however short the file is.
# From the lowest one, it makes 160 samples of one. Both stand here so that a program can check its
# options without torch.
MIN_RATE, MAX_RATE = 100, 768_000
