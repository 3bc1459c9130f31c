"""``python -m experiments.tutorial``."""

import sys

from experiments.documents.tutorial import main

if __name__ == "__main__":
    main(sys.argv[1:])
