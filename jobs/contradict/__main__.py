"""Run ``python -m jobs.contradict``."""

import sys

from jobs.contradict.job import main

if __name__ == "__main__":
    sys.exit(main())
