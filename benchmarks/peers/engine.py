"""isogloss-server's engine in process: its queue, tokenizer and model as the server loads them, without gRPC.

python -m benchmarks.peers.engine FOLDER PRECISION THREADS
"""

import gc
import sys
from collections.abc import Sequence

import uvloop
from isogloss_server import loading
from isogloss_server.clock import SystemClock
from isogloss_server.engine.workers import Workers
from isogloss_server.models.base import Embedded, Embedder, Role, Truncation, Urgency
from isogloss_server.settings import Settings

from benchmarks.turns import Outcome, obey, take_turns


class InEngine:
    """Callers that await the engine's Embedder, as many at a time as of the service."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._ready: list[tuple[int, list[str]]] = []
        self._callers = 1

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Keeps the calls."""
        self._callers = callers
        self._ready = [(len(texts), list(texts)) for texts in calls]

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        return await take_turns(self._embed, self._ready, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        rows: list[list[float]] = (await self._embed(texts)).rows.tolist()
        return rows

    async def _embed(self, texts: Sequence[str]) -> Embedded:
        return await self._embedder.embed(texts, Role.SIMILARITY, Truncation.END, Urgency())


async def main(folder: str, precision: str, threads: int) -> None:
    """Drives the engine until the runner has no more orders."""
    settings = Settings.model_validate({"precision": precision, "inference_threads": threads})
    workers = Workers(settings.worker_threads)
    try:
        ready = loading.load(folder, settings, workers, SystemClock())
        gc.collect()
        gc.freeze()  # as the server does
        await obey(InEngine(ready.embedder))
    finally:
        workers.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
