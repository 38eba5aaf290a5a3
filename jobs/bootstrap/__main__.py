"""Run the command line of ``python -m jobs.bootstrap``."""

import sys

from jobs.bootstrap.job import main

if __name__ == "__main__":
    sys.exit(main())
