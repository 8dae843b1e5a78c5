"""Load generator of the `soak` workload: callers that make random calls until SIGTERM, then finish their current call.

    python -m benchmarks.drivers.soak ADDRESS SEED MODEL=KNOWN_HEX...

Every second it prints one JSON object for that second: texts, latencies of interactive calls, status codes of calls by
kind, and unexpected status codes.
"""

import asyncio
import collections
import json
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop
from isogloss import AsyncClient, Client

from benchmarks.drivers import hostile
from benchmarks.drivers import soak_calls as calls
from benchmarks.drivers import soak_faults as faults

CALLERS = 4
PAUSE_S = 0.02  # between two calls of one caller
REPORT_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call: its relative frequency, the function that makes it, and the status codes that it may return."""

    weight: float
    make: Callable[[calls.Context], Awaitable[str | hostile.Outcomes | None]]
    codes: frozenset[str] = frozenset({"OK"})


def _codes(*names: str) -> frozenset[str]:
    return frozenset(names)


CANCELLED = _codes("OK", "CANCELLED")
# The server refuses a call at once if it cannot finish before the deadline.
LATE = _codes("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
# Others may use the time and the memory that the server has for all callers.
LARGE = _codes("OK", "RESOURCE_EXHAUSTED")
UNREAD = _codes(hostile.OPEN, hostile.ENDED, hostile.CLOSED)
KINDS = (
    Kind(30, calls.interactive),
    Kind(10, calls.batch),
    Kind(4, calls.known),
    Kind(4, calls.partial),
    Kind(4, calls.blocking),
    Kind(3, calls.many),
    Kind(6, calls.similarity),
    Kind(3, calls.state),
    Kind(2, calls.watch),
    Kind(2, calls.reflection),
    Kind(1, calls.reconnect),
    Kind(6, faults.cancelled, CANCELLED),
    Kind(6, faults.late, LATE),
    Kind(2, faults.many_left, CANCELLED),
    Kind(4, faults.stream_cancelled, CANCELLED),
    Kind(4, faults.stream_late, LATE),
    Kind(1, faults.slow_reader),
    Kind(3, faults.empty_text, _codes("INVALID_ARGUMENT")),
    Kind(3, faults.unknown_model, _codes("NOT_FOUND")),
    Kind(3, faults.wrong_space, _codes("FAILED_PRECONDITION")),
    Kind(3, faults.wrong_matrix, _codes("INVALID_ARGUMENT")),
    Kind(3, faults.malformed, _codes("INVALID_ARGUMENT", "INTERNAL")),
    Kind(1, faults.too_many_texts, _codes("INVALID_ARGUMENT")),
    Kind(1, faults.oversized, _codes("RESOURCE_EXHAUSTED")),
    Kind(3, faults.unknown_method, _codes("UNIMPLEMENTED")),
    Kind(1, faults.same_id, _codes("INVALID_ARGUMENT")),
    Kind(0.2, hostile.hex_digits, LARGE),
    Kind(0.2, hostile.unknown_token, LARGE),
    Kind(0.2, hostile.empty_strings, _codes("INVALID_ARGUMENT")),
    Kind(0.2, hostile.wide_matrix, _codes("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")),
    Kind(0.2, hostile.many_neighbors, LARGE),
    Kind(0.2, hostile.burst, LARGE),
    Kind(0.2, hostile.unread_streams, UNREAD),
    Kind(0.2, hostile.unread_responses, UNREAD),
    Kind(0.2, hostile.unfinished_requests, UNREAD),
)


class Counters:
    """Texts, latencies and status codes since the last report."""

    def __init__(self, context: calls.Context) -> None:
        self._context = context
        self._outcomes: collections.Counter[str] = collections.Counter()
        self._unexpected: list[str] = []
        self._in_progress: collections.Counter[str] = collections.Counter()

    async def call(self, kind: Kind) -> None:
        """Makes a call, or several of a hostile kind, and counts the status codes."""
        name, message = getattr(kind.make, "__name__", ""), ""
        self._in_progress[name] += 1
        try:
            result = await kind.make(self._context) or "OK"
        except Exception as error:  # noqa: BLE001 - the code of any error is an outcome
            result, message = faults.code_of(error), str(error)[:300]
        finally:
            self._in_progress[name] -= 1
        outcomes = result if isinstance(result, collections.Counter) else collections.Counter([result])
        for outcome, count in outcomes.items():
            self._outcomes[f"{name} {outcome}"] += count
            if outcome.split()[0] not in kind.codes:
                self._unexpected.append(f"{name} {outcome}: {message}")

    def report(self) -> None:
        """Prints the counters and resets them."""
        report = {
            "texts": self._context.embedded_texts,
            "interactive_ms": self._context.interactive_ms,
            "outcomes": dict(self._outcomes),
            "unexpected": self._unexpected,
            "in_progress": sorted((+self._in_progress).elements()),
        }
        print(json.dumps(report), flush=True)
        self._context.embedded_texts, self._context.interactive_ms = 0, []
        self._outcomes.clear()
        self._unexpected = []


async def load(context: calls.Context) -> None:
    """Runs CALLERS concurrent callers until SIGTERM."""
    stopped, counters = asyncio.Event(), Counters(context)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def caller() -> None:
        while not stopped.is_set():
            [kind] = context.random.choices(KINDS, [kind.weight for kind in KINDS])
            await counters.call(kind)
            await asyncio.sleep(PAUSE_S)

    async def reporter() -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            counters.report()

    reporting = asyncio.create_task(reporter())
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    reporting.cancel()
    counters.report()


async def main(address: str, seed: str, *known: str) -> None:
    """Connects the clients and loads the server."""
    known_hex = dict(argument.rsplit("=", 1) for argument in known)
    options: Any = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with Client(address) as blocking:
        async with AsyncClient(address) as client, grpc.aio.insecure_channel(address, options=options) as channel:
            context = calls.Context(
                address=address,
                models=list(known_hex),
                known={model: bytes.fromhex(digits) for model, digits in known_hex.items()},
                random=random.Random(int(seed)),  # noqa: S311 - not for cryptography
                client=client,
                blocking=blocking,
                channel=channel,
            )
            await load(context)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
