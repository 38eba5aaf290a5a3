"""Run the command line of ``python -m jobs.score``."""

import sys

from jobs.score.job import main

if __name__ == "__main__":
    sys.exit(main())
