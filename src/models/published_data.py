"""What the published checkpoints were trained on: size of the input, rate, statistics.

This file imports nothing, because a command line is checked with it before there is an environment.
"""
SAMPLE_RATE = 16000  # Hz; what a checkpoint was trained at if it does not say its sample_rate
AUDIOSET_INPUT = {'input_fdim': 128, 'input_tdim': 1024, 'mean': -4.2677393, 'std': 4.5689974}
SPEECHCOMMANDS_INPUT = {'input_fdim': 128, 'input_tdim': 128, 'mean': -6.845978, 'std': 5.5654526}
