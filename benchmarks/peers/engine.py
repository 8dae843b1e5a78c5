"""isogloss-server's engine in process: its queue, tokenizer and model as the server loads them, without gRPC.

python -m benchmarks.peers.engine FOLDER PRECISION THREADS
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

from benchmarks.peers.in_process import Concurrent
from benchmarks.turns import obey


async def main(folder: str, precision: str, threads: int) -> None:
    """Drives the engine until the runner has no more orders."""
    settings = Settings.model_validate({"precision": precision, "inference_threads": threads})
    workers = Executor(settings.worker_threads)
    try:
        ready = factory.load(folder, settings, workers, SystemClock())
        gc.collect()
        gc.freeze()  # as the server does

        async def embed(texts: Sequence[str]) -> Rows:
            """Returns what the engine's Embedder gives."""
            return (await ready.embedder.embed(texts, InputType.SIMILARITY, Truncation.END, Urgency())).rows

        await obey(Concurrent(embed))
    finally:
        workers.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
