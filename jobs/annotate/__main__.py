"""Run the command line of ``python -m jobs.annotate``."""

import sys

from jobs.annotate.job import main

if __name__ == "__main__":
    sys.exit(main())
