"""Runs embed_many of either client to its end, so that one test covers both."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from isogloss import AsyncClient, Client, ClientOptions, EmbeddedChunk
from isogloss._bulk import BulkTiming

from tests.support.fake import vectors

ONCE = ClientOptions(attempts=1)
NO_BACKOFF = BulkTiming(first_delay_s=0.0)
Many = Callable[..., "Found"]
Found = tuple[list[EmbeddedChunk], BaseException | None]


def blocking(
    address: str, texts: Any, timing: BulkTiming = NO_BACKOFF, each: Callable[[Any], Any] = id, **arguments: Any
) -> Found:
    """Returns the chunks and the final error, or None; calls `each` with every chunk."""
    found: list[EmbeddedChunk] = []
    with Client(address, options=ONCE) as client:
        client._bulk_timing = timing
        try:
            for chunk in client.embed_many(texts, **arguments):
                found.append(chunk)
                each(chunk)
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt as well
            return found, error
    return found, None


def asynchronous(
    address: str, texts: Any, timing: BulkTiming = NO_BACKOFF, each: Callable[[Any], Any] = id, **arguments: Any
) -> Found:
    """Returns the chunks and the final error, or None; calls `each` with every chunk."""
    found: list[EmbeddedChunk] = []

    async def run() -> None:
        """Iterates in a new event loop; asyncio.run fails if tasks remain."""
        async with AsyncClient(address, options=ONCE) as client:
            client._bulk_timing = timing
            async for chunk in client.embed_many(texts, **arguments):
                found.append(chunk)
                each(chunk)

    try:
        asyncio.run(run())
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt as well
        return found, error
    return found, None


def numbered(count: int) -> list[str]:
    """Returns `count` different texts."""
    return [f"text {number}" for number in range(count)]


def check_whole(found: Found, texts: list[str]) -> None:
    """Asserts that the chunks have all texts with their vectors, once and in order."""
    chunks, error = found
    assert error is None
    check_rows(chunks, texts)


def check_rows(chunks: list[EmbeddedChunk], texts: list[str]) -> None:
    """Asserts that the chunks cover `texts` without a gap."""
    assert [text for chunk in chunks for text in chunk.texts] == texts
    assert [chunk.start for chunk in chunks] == list(_starts(chunks))
    for chunk in chunks:
        assert np.array_equal(chunk.embeddings.vectors, vectors(chunk.texts))


def _starts(chunks: Iterable[EmbeddedChunk]) -> Iterator[int]:
    start = 0
    for chunk in chunks:
        yield start
        start += len(chunk)
