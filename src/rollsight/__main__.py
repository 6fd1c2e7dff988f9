"""`python -m rollsight`: the command line."""

import sys

from rollsight.cli import main

if __name__ == "__main__":
    sys.exit(main())
