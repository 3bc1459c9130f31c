"""The one error that is shown as a sentence instead of a traceback."""


class UsageError(Exception):
    """What was asked for cannot be done; the text says why."""
