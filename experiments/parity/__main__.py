"""``python -m experiments.parity``."""

import sys

from experiments.parity.experiment import main

if __name__ == "__main__":
    sys.exit(main())
