"""Recordings -> waveforms -> fbanks, and their augmentation. Needs no dataset."""
