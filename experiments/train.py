"""``python -m experiments.train``."""

import sys

from experiments.training.command_line import main

if __name__ == "__main__":
    sys.exit(main())
