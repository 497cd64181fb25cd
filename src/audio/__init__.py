"""Recordings to waveforms to fbanks, and the augmentation of both. Nothing here needs a dataset."""
