"""Entry point of `python -m isogloss.cli`, the same as the command `isogloss`."""

import sys

from isogloss.cli import main

if __name__ == "__main__":
    sys.exit(main())
