"""Driver for Cohere's SDK used directly: splits texts into concurrent requests and joins the vectors into one array.

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

from benchmarks.drivers.driver import AsyncLibraryDriver, serve_runner


class SdkEmbedder:
    """Embeds through the SDK, with a limit on concurrent requests that all callers share."""

    def __init__(self, url: str, model: str, texts_per_call: int, calls: int, kind: str) -> None:
        self._client = AsyncClientV2("key", base_url=url)
        self._model, self._texts_per_call, self._kind = model, texts_per_call, kind
        self._requests = asyncio.Semaphore(calls)

    async def embed(self, texts: Sequence[str]) -> Any:
        """Returns float32 [n, d]."""
        size = self._texts_per_call
        chunks = [texts[first : first + size] for first in range(0, len(texts), size)]
        return np.concatenate(await asyncio.gather(*map(self._chunk, chunks)))

    async def _chunk(self, texts: Sequence[str]) -> Any:
        async with self._requests:
            response = await self._client.embed(
                model=self._model,
                texts=list(texts),
                input_type="search_document",
                truncate="END",
                embedding_types=[self._kind],
            )
        if self._kind == "float":
            return np.asarray(response.embeddings.float_, np.float32)
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in response.embeddings.base64 or ()])


async def main(url: str, model: str, texts_per_call: str, calls: str, kind: str) -> None:
    """Drives the SDK until the runner closes standard input."""
    await serve_runner(AsyncLibraryDriver(SdkEmbedder(url, model, int(texts_per_call), int(calls), kind).embed))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
