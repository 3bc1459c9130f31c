"""One network trained from a YAML file: ``python -m experiments.train``."""
