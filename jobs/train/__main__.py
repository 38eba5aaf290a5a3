"""Run the command line of ``python -m jobs.train``."""

import sys

from jobs.train.job import main

if __name__ == "__main__":
    sys.exit(main())
