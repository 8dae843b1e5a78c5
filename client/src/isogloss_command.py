"""Entry point of the `isogloss` command, which disables the log of gRPC's core.

The log would print lines before the error message of the command. This is a module of its own because gRPC reads the
variable when it is imported.
"""

import os
import sys


def main() -> int:
    """Runs the command line; returns its exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from isogloss.cli import main as run  # noqa: PLC0415 - after the variable is set

    return run()


if __name__ == "__main__":
    sys.exit(main())
