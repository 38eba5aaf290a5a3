"""Run the command line of ``python -m jobs.imagine``."""

import sys

from jobs.imagine.job import main

if __name__ == "__main__":
    sys.exit(main())
