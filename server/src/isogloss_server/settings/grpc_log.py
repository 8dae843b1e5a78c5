"""What gRPC's core writes on its own."""

import os


def quieten() -> None:
    """Lets gRPC's core write nothing, unless GRPC_VERBOSITY says otherwise; to be called before it is loaded.

    Its lines quote what callers say, line ends and all: whoever reaches the port could write lines into the log.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
