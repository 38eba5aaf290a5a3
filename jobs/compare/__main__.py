"""Run the command line of ``python -m jobs.compare``."""

import sys

from jobs.compare.job import main

if __name__ == "__main__":
    sys.exit(main())
