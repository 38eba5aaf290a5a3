"""Run the command line of ``python -m jobs.paper``."""

import sys

from jobs.paper.job import main

if __name__ == "__main__":
    sys.exit(main())
