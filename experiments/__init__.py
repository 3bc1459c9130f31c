"""Experiments that use ``torch_convbp`` as any user would: ``python -m experiments.parity``."""
