"""Run the command line of ``python -m jobs.study``."""

import sys

from jobs.study.job import main

if __name__ == "__main__":
    sys.exit(main())
