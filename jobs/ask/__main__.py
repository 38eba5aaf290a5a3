"""Run the command line of ``python -m jobs.ask``."""

import sys

from jobs.ask.job import main

if __name__ == "__main__":
    sys.exit(main())
