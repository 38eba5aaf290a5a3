"""Run the command line of ``python -m jobs.predict``."""

import sys

from jobs.predict.job import main

if __name__ == "__main__":
    sys.exit(main())
