"""Callers in turn, and the lines by which the runner drives whatever makes the calls.

A driver is a process that makes calls: the load generator, or a library in whose process there is no wire. It writes
`{"ready": true}`, then reads one JSON object a line and answers with one:

    {"prepare": [[text, ...], ...], "callers": n}   the calls to come, made ready untimed -> {}
    {"run": limit_s}                                makes them -> an Outcome; starts none after limit_s seconds
    {"vectors": [text, ...]}                        -> {"vectors": [[float, ...], ...]}
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(slots=True)
class Outcome:
    """What became of the calls."""

    texts: int = 0  # answered
    wall_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)  # of answered calls
    errors: int = 0
    first_error: str = ""


class Driver(Protocol):
    """What makes calls."""

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Makes the calls ready."""
        ...

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        ...

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        ...


async def take_turns(
    call: Callable[[Any], Awaitable[object]], ready: Sequence[tuple[int, Any]], callers: int, limit_s: float
) -> Outcome:
    """Returns the outcome of `callers` callers who share the calls, each a number of texts and what `call` takes."""
    outcome, left, began_s = Outcome(), iter(ready), time.perf_counter()

    async def caller() -> None:
        for texts, one in left:
            sent_s = time.perf_counter()
            if sent_s - began_s > limit_s:
                return
            try:
                await call(one)
            except Exception as error:  # noqa: BLE001 - every failure of a call is counted, and the first one told
                outcome.errors += 1
                outcome.first_error = outcome.first_error or f"{type(error).__name__}: {error}"[:300]
            else:
                outcome.latencies_ms.append((time.perf_counter() - sent_s) * 1000)
                outcome.texts += texts

    await asyncio.gather(*(caller() for _ in range(callers)))
    outcome.wall_s = time.perf_counter() - began_s
    return outcome


async def obey(driver: Driver) -> None:
    """Does what the lines of standard input say, until they end."""
    answer: dict[str, Any] = {"ready": True}
    while True:
        print(json.dumps(answer), flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            return
        order = json.loads(line)
        answer = {}
        if "prepare" in order:
            driver.prepare(order["prepare"], order["callers"])
        elif "run" in order:
            answer = asdict(await driver.run(order["run"]))
        else:
            answer = {"vectors": await driver.vectors(order["vectors"])}
