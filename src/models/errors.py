"""The error that everything around weights raises."""


class WeightsError(ValueError):
    """Weights that cannot be had, cannot be read, or do not fit; the message says what to do."""
