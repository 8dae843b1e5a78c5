"""Drivers: processes that make the calls of a workload, controlled by the runner over standard input and output.

A driver is either the load generator or, for a library without a server, the library's own process. It writes
`{"ready": true}`, then reads one JSON command a line and writes one JSON response a line:

    {"prepare": [[text, ...], ...], "callers": n}   builds the requests, untimed -> {}
    {"run": limit_s}                                sends them, starts none after limit_s seconds -> a RunResult
    {"vectors": [text, ...]}                        -> {"vectors": [[float, ...], ...]}
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class RunResult:
    """Texts, time and errors of the calls of one run."""

    texts: int = 0  # in successful calls
    wall_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)  # of successful calls
    errors: int = 0
    first_error: str = ""


class Driver(Protocol):
    """Makes the calls of a workload."""

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Builds the requests of the next run."""
        ...

    async def run(self, limit_s: float) -> RunResult:
        """Sends the prepared requests."""
        ...

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        ...


async def run_closed_loop(
    call: Callable[[Any], Awaitable[object]], requests: Sequence[tuple[int, Any]], callers: int, limit_s: float
) -> RunResult:
    """Sends all requests from `callers` concurrent callers, each of which waits for its response before its next call.

    Args:
        call: Sends one request.
        requests: The number of texts of each request, and the request. The callers share the sequence.
        callers: The number of concurrent callers.
        limit_s: Seconds after which no further call starts.
    """
    result, remaining, start_s = RunResult(), iter(requests), time.perf_counter()

    async def caller() -> None:
        for texts, request in remaining:
            sent_s = time.perf_counter()
            if sent_s - start_s > limit_s:
                return
            try:
                await call(request)
            except Exception as error:  # noqa: BLE001 - the run counts every failed call and reports the first error
                result.errors += 1
                result.first_error = result.first_error or f"{type(error).__name__}: {error}"[:300]
            else:
                result.latencies_ms.append((time.perf_counter() - sent_s) * 1000)
                result.texts += texts

    await asyncio.gather(*(caller() for _ in range(callers)))
    result.wall_s = time.perf_counter() - start_s
    return result


class AsyncLibraryDriver:
    """Drives an asyncio function in this process, with one pending call for each caller.

    Args:
        embed: Returns float32 [n, d] for n texts.
    """

    def __init__(self, embed: Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]) -> None:
        self._embed = embed
        self._requests: list[tuple[int, list[str]]] = []
        self._callers = 1

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Stores the texts of each call."""
        self._callers = callers
        self._requests = [(len(texts), list(texts)) for texts in calls]

    async def run(self, limit_s: float) -> RunResult:
        """Makes the prepared calls."""
        return await run_closed_loop(self._embed, self._requests, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        rows: list[list[float]] = np.asarray(await self._embed(texts), dtype=np.float32).tolist()
        return rows


class BlockingLibraryDriver(AsyncLibraryDriver):
    """Drives a blocking function in this process, one call at a time.

    The callers of such a library share one thread, so the number of callers does not change what the library does.

    Args:
        encode: Returns float32 [n, d] for n texts.
    """

    def __init__(self, encode: Callable[[Sequence[str]], NDArray[np.float32]]) -> None:
        async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
            return encode(texts)

        super().__init__(embed)

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Stores the texts of each call, for a single caller."""
        del callers
        super().prepare(calls, 1)


async def serve_runner(driver: Driver) -> None:
    """Executes the commands of the runner until standard input ends."""
    response: dict[str, Any] = {"ready": True}
    while True:
        print(json.dumps(response), flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            return
        command = json.loads(line)
        response = {}
        if "prepare" in command:
            driver.prepare(command["prepare"], command["callers"])
        elif "run" in command:
            response = asdict(await driver.run(command["run"]))
        else:
            response = {"vectors": await driver.vectors(command["vectors"])}
