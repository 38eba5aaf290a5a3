"""Run ``python -m jobs.judge``."""

import sys

from jobs.judge.job import main

if __name__ == "__main__":
    sys.exit(main())
