"""``python -m experiments.error_signals``."""

import sys

from experiments.documents.error_signals import main, parse_arguments

if __name__ == "__main__":
    main(parse_arguments(sys.argv[1:]))
