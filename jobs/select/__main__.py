"""Run the command line of ``python -m jobs.select``."""

import sys

from jobs.select.job import main

if __name__ == "__main__":
    sys.exit(main())
