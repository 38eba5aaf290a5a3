"""Run the command line of ``python -m jobs.benchmark``."""

import sys

from jobs.benchmark.job import main

if __name__ == "__main__":
    sys.exit(main())
