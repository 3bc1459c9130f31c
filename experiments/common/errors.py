"""The one error that the experiments show as a sentence instead of a traceback."""


class UsageError(Exception):
    """What was asked for cannot be done; the text says what can."""
