"""Run the command line of ``python -m jobs.ingest``."""

import sys

from jobs.ingest.job import main

if __name__ == "__main__":
    sys.exit(main())
