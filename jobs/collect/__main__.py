"""Run the command line of ``python -m jobs.collect``."""

import sys

from jobs.collect.job import main

if __name__ == "__main__":
    sys.exit(main())
