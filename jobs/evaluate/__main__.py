"""Run the command line of ``python -m jobs.evaluate``."""

import sys

from jobs.evaluate.job import main

if __name__ == "__main__":
    sys.exit(main())
