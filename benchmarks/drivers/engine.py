"""Driver for the engine of isogloss-server in process: batch queue, tokenizer and model without gRPC.

python -m benchmarks.drivers.engine FOLDER PRECISION THREADS
"""

import gc
import sys
from collections.abc import Sequence

import uvloop
from isogloss.wire.enums import InputType, Truncation
from isogloss_server import factory
from isogloss_server.clock import SystemClock
from isogloss_server.engine.executor import Executor
from isogloss_server.models.interfaces import Rows, Urgency
from isogloss_server.settings.declarations import Settings

from benchmarks.drivers.driver import AsyncLibraryDriver, serve_runner


async def main(folder: str, precision: str, threads: int) -> None:
    """Drives the engine until the runner closes standard input."""
    settings = Settings.model_validate({"precision": precision, "inference_threads": threads})
    executor = Executor(settings.worker_threads)
    try:
        ready = factory.load("m", folder, settings, executor, SystemClock())
        gc.collect()
        gc.freeze()  # the server does the same after loading

        async def embed(texts: Sequence[str]) -> Rows:
            """Returns float32 [n, d] for n texts."""
            return (await ready.embedder.embed(texts, InputType.SIMILARITY, Truncation.END, Urgency())).rows

        await serve_runner(AsyncLibraryDriver(embed))
    finally:
        executor.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
