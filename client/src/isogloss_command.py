"""The `isogloss` program, with gRPC's core kept quiet: its log lines would stand before the one that tells an error.

A module of its own, since gRPC reads the variable as it is loaded.
"""

import os
import sys


def main() -> int:
    """Runs the command line; returns its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from isogloss.cli import main as run  # noqa: PLC0415 - only now, see above

    return run()


if __name__ == "__main__":
    sys.exit(main())
