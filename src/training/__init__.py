"""What training is made of: options, data loading, trainer, checkpoint, processes, devices."""
