"""Cohere's SDK as one would use it without a service: chunks gathered, so many in flight, vectors to one array.

python -m benchmarks.peers.cohere_sdk URL MODEL TEXTS_PER_CALL CALLS_IN_FLIGHT base64|float
"""

import asyncio
import base64
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvloop
from cohere import AsyncClientV2

from benchmarks.turns import Outcome, obey, take_turns


class BareSdk:
    """Callers of the SDK, all of which share the calls in flight."""

    def __init__(self, url: str, model: str, texts_per_call: int, calls: int, kind: str) -> None:
        self._client = AsyncClientV2("key", base_url=url)
        self._model, self._texts_per_call, self._kind = model, texts_per_call, kind
        self._free = asyncio.Semaphore(calls)
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
        rows: list[list[float]] = (await self._embed(texts)).tolist()
        return rows

    async def _embed(self, texts: Sequence[str]) -> Any:
        size = self._texts_per_call
        chunks = [texts[first : first + size] for first in range(0, len(texts), size)]
        return np.concatenate(await asyncio.gather(*map(self._chunk, chunks)))

    async def _chunk(self, texts: Sequence[str]) -> Any:
        async with self._free:
            answer = await self._client.embed(
                model=self._model,
                texts=list(texts),
                input_type="search_document",
                truncate="END",
                embedding_types=[self._kind],
            )
        if self._kind == "float":
            return np.asarray(answer.embeddings.float_, np.float32)
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in answer.embeddings.base64 or ()])


async def main(url: str, model: str, texts_per_call: str, calls: str, kind: str) -> None:
    """Drives the SDK until the runner has no more orders."""
    await obey(BareSdk(url, model, int(texts_per_call), int(calls), kind))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
