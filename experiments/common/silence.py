"""What Lightning says beyond what the experiments say themselves."""

from __future__ import annotations

import logging
import warnings


def silence_lightning() -> None:
    """Silence what Lightning says about hardware and loaders that are not in question here."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*number of training batches.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*optimizer.step.*")
