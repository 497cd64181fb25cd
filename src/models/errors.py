"""The error that everything around weights raises."""


class WeightsError(ValueError):
    """Weights that are not there, cannot be read, or do not fit; the message says what to do."""
