"""isogloss-server that reports its heap usage: writes one JSON line for each line on standard input.

python -m benchmarks.drivers.instrumented_server [ARGUMENT OF isogloss-server...]
"""

import ctypes
import gc
import json
import sys
import threading

import grpc
import psutil
from isogloss_server import metrics
from isogloss_server.cli import main


class Mallinfo2(ctypes.Structure):
    """Allocation statistics of glibc over all arenas; see mallinfo(3)."""

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
    """Returns the bytes in use on the C heap, the allocated Python blocks, and the objects tracked by the collector."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo2
    gc.collect()
    info = library.mallinfo2()
    return {
        "c_bytes": info.uordblks + info.hblkhd,
        "python_blocks": sys.getallocatedblocks(),
        "python_objects": len(gc.get_objects()),
    }


def report_heaps() -> None:
    """Writes one report for each line of standard input, until it ends."""
    for _ in sys.stdin:
        tasks = int(metrics.REGISTRY.get_sample_value("isogloss_tasks") or 0)
        counts = {"tasks": tasks, "fds": psutil.Process().num_fds(), "grpcio": grpc.__version__}
        print(json.dumps({**heaps(), **counts}), flush=True)


if __name__ == "__main__":
    threading.Thread(target=report_heaps, daemon=True).start()
    sys.exit(main(sys.argv[1:]))
