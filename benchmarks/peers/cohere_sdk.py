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

from benchmarks.drivers.driver import obey
from benchmarks.drivers.in_process import Concurrent


class BareSdk:
    """The SDK, all of whose callers share the calls in flight."""

    def __init__(self, url: str, model: str, texts_per_call: int, calls: int, kind: str) -> None:
        self._client = AsyncClientV2("key", base_url=url)
        self._model, self._texts_per_call, self._kind = model, texts_per_call, kind
        self._free = asyncio.Semaphore(calls)

    async def embed(self, texts: Sequence[str]) -> Any:
        """Returns float32 [n, d]."""
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
    await obey(Concurrent(BareSdk(url, model, int(texts_per_call), int(calls), kind).embed))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
