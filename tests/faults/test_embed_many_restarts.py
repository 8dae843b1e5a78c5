"""embed_many on real servers that are killed or drained and restarted during the call."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from isogloss import AsyncClient, Client, EmbeddedChunk

from tests.support.server_process import ServerProcess

TEXTS = [f"Sentence number {number} of a long list, {'again and ' * (number % 7)}again." for number in range(16000)]
CHUNK_TEXTS = 400  # a window of chunks takes longer than the test needs to stop the server


class RestartingServer:
    """A server on a fixed port that is stopped and started again after the chunks that start at `starts`."""

    def __init__(self, number: signal.Signals, *starts: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._number = number
        self._starts = starts
        self.processes = [self._start()]
        self.address = self.processes[0].address

    def on_chunk(self, chunk: EmbeddedChunk) -> None:
        """After a chunk of `starts`, stops the server with requests in flight and starts another one."""
        if chunk.start in self._starts:
            process = self.processes[-1]
            process.signal(self._number)
            assert process.wait() == (-signal.SIGKILL if self._number == signal.SIGKILL else 0)
            self.processes.append(self._start())

    def _start(self) -> ServerProcess:
        return ServerProcess("--port", self._port, "--drain-delay-s", "0")


@contextlib.contextmanager
def restarting_server(number: signal.Signals, *starts: int) -> Iterator[RestartingServer]:
    """Yields a RestartingServer, which is stopped at the end."""
    servers = RestartingServer(number, *starts)
    try:
        yield servers
    finally:
        servers.processes[-1].stop()


def blocking(address: str, on_chunk: Callable[[Any], None]) -> list[EmbeddedChunk]:
    """Returns all chunks of the blocking client."""
    found = []
    with Client(address) as client:
        for chunk in client.embed_many(iter(TEXTS), chunk_texts=CHUNK_TEXTS):
            found.append(chunk)
            on_chunk(chunk)
    return found


def asynchronous(address: str, on_chunk: Callable[[Any], None]) -> list[EmbeddedChunk]:
    """Returns all chunks of the asyncio client."""
    found = []

    async def iterate() -> None:
        """Restarts servers on a thread, so that the event loop is not blocked."""
        async with AsyncClient(address) as client:
            async for chunk in client.embed_many(iter(TEXTS), chunk_texts=CHUNK_TEXTS):
                found.append(chunk)
                await asyncio.to_thread(on_chunk, chunk)

    asyncio.run(iterate())
    return found


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> np.ndarray:
    """The vectors of TEXTS from `embed`, float32 [n, d]."""
    with Client(server.address) as client:
        return client.embed(TEXTS).vectors


@pytest.mark.parametrize(
    ("run", "number"),
    [
        (blocking, signal.SIGKILL),
        (asynchronous, signal.SIGTERM),
        pytest.param(blocking, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(asynchronous, signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_embed_many_survives_restarts_of_the_server(
    run: Callable[..., Any], number: signal.Signals, expected: np.ndarray
) -> None:
    """If the server is killed or drained twice, every chunk is still returned once and in order."""
    with restarting_server(number, 5 * CHUNK_TEXTS, 25 * CHUNK_TEXTS) as servers:
        found = run(servers.address, servers.on_chunk)
        assert len(servers.processes) == 3
    assert [text for chunk in found for text in chunk.texts] == TEXTS
    assert [chunk.start for chunk in found] == list(range(0, len(TEXTS), CHUNK_TEXTS))
    assert np.array_equal(np.concatenate([chunk.embeddings.vectors for chunk in found]), expected)
    assert len({chunk.embeddings.space_id for chunk in found}) == 1
