"""Run the command line of ``python -m cluster.chaos``."""

import sys

from cluster.chaos.script import main

if __name__ == "__main__":
    sys.exit(main())
