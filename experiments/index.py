"""``python -m experiments.index``."""

import sys

from experiments.common.index import main

if __name__ == "__main__":
    sys.exit(main())
