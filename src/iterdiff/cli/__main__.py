"""Run the command as ``python -m iterdiff.cli``."""

import sys

from iterdiff.cli import main

if __name__ == "__main__":
    sys.exit(main())
