"""Run ``python -m jobs.push``."""

import sys

from jobs.push.job import main

if __name__ == "__main__":
    sys.exit(main())
