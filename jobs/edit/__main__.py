"""Run the command line of ``python -m jobs.edit``."""

import sys

from jobs.edit.job import main

if __name__ == "__main__":
    sys.exit(main())
