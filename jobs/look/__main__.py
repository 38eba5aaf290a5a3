"""Run the command line of ``python -m jobs.look``."""

import sys

from jobs.look.job import main

if __name__ == "__main__":
    sys.exit(main())
