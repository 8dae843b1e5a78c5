"""isogloss-server that also tells, on its standard output, what its heaps hold: a JSON line for each line it is sent.

python -m benchmarks.peers.watched [ARGUMENT OF isogloss-server...]
"""

import ctypes
import gc
import json
import sys
import threading
from pathlib import Path

import grpc
from isogloss_server import metrics
from isogloss_server.cli import main


class Mallinfo2(ctypes.Structure):
    """What glibc tells of all its arenas; <malloc.h>."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def heaps() -> dict[str, int]:
    """Returns the bytes in use of C's heap, the blocks in use of Python's, and the objects that it may collect."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo2
    gc.collect()
    info = library.mallinfo2()
    return {
        "c_bytes": info.uordblks + info.hblkhd,
        "python_blocks": sys.getallocatedblocks(),
        "python_objects": len(gc.get_objects()),
    }


def tell() -> None:
    """Answers each line until there are no more."""
    for _ in sys.stdin:
        tasks = int(metrics.REGISTRY.get_sample_value("isogloss_tasks") or 0)
        others = {"tasks": tasks, "fds": len(list(Path("/proc/self/fd").iterdir())), "grpcio": grpc.__version__}
        print(json.dumps({**heaps(), **others}), flush=True)


if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
