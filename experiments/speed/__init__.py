"""How fast torch_convbp is beside torch, and how exact: ``python -m experiments.speed``."""
