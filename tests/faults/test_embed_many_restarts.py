"""embed_many against real servers that are killed and restarted under it."""

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
CHUNK_TEXTS = 400  # large enough that a window takes a server longer than the test takes to end it


class Restarted:
    """A server on one port that is ended, and started anew, when certain chunks have come."""

    def __init__(self, number: signal.Signals, *starts: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._number = number
        self._starts = starts
        self.processes = [self._start()]
        self.address = self.processes[0].address

    def after(self, chunk: EmbeddedChunk) -> None:
        """Ends the server where its time has come, with requests in flight, and starts another one."""
        if chunk.start in self._starts:
            process = self.processes[-1]
            process.signal(self._number)
            assert process.wait() == (-signal.SIGKILL if self._number == signal.SIGKILL else 0)
            self.processes.append(self._start())

    def _start(self) -> ServerProcess:
        return ServerProcess("--port", self._port, "--drain-delay-s", "0")


@contextlib.contextmanager
def restarted(number: signal.Signals, *starts: int) -> Iterator[Restarted]:
    """A server that is stopped in the end."""
    servers = Restarted(number, *starts)
    try:
        yield servers
    finally:
        servers.processes[-1].stop()


def blocking(address: str, after: Callable[[Any], None]) -> list[EmbeddedChunk]:
    """All chunks of the blocking client."""
    found = []
    with Client(address) as client:
        for chunk in client.embed_many(iter(TEXTS), chunk_texts=CHUNK_TEXTS):
            found.append(chunk)
            after(chunk)
    return found


def asynchronous(address: str, after: Callable[[Any], None]) -> list[EmbeddedChunk]:
    """All chunks of the asyncio client."""
    found = []

    async def iterate() -> None:
        """Lets the loop run while servers end."""
        async with AsyncClient(address) as client:
            async for chunk in client.embed_many(iter(TEXTS), chunk_texts=CHUNK_TEXTS):
                found.append(chunk)
                await asyncio.to_thread(after, chunk)

    asyncio.run(iterate())
    return found


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> np.ndarray:
    """What a plain embed gives, float32 [n, d]."""
    with Client(server.address) as client:
        return client.embed(TEXTS).vectors


@pytest.mark.parametrize("run", [blocking, asynchronous])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_work_outlives_its_servers(expected: np.ndarray, run: Callable[..., Any], number: signal.Signals) -> None:
    """A server that is killed, or drained, twice under the work costs no vector; none comes twice or out of order."""
    with restarted(number, 5 * CHUNK_TEXTS, 25 * CHUNK_TEXTS) as servers:
        found = run(servers.address, servers.after)
        assert len(servers.processes) == 3
    assert [text for chunk in found for text in chunk.texts] == TEXTS
    assert [chunk.start for chunk in found] == list(range(0, len(TEXTS), CHUNK_TEXTS))
    assert np.array_equal(np.concatenate([chunk.embeddings.vectors for chunk in found]), expected)
    assert len({chunk.embeddings.space_id for chunk in found}) == 1
