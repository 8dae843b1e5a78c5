"""The load of the soak, a process of its own: callers who do this and that until SIGTERM, then finish what they do.

python -m benchmarks.drivers.soak ADDRESS SEED MODEL=KNOWN_HEX...

Every second it prints what happened since as one JSON object: texts, latencies of interactive calls, how calls ended,
and what ended as it must not.
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

from benchmarks.drivers import soak_calls as calls
from benchmarks.drivers import soak_faults as faults

CALLERS = 4
PAUSE_S = 0.02  # between two calls of one caller
TELL_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call: how often among others, what makes it, and how it may end."""

    weight: int
    make: Callable[[calls.Shared], Awaitable[str | None]]
    ends: frozenset[str] = frozenset({"OK"})


def _may(*codes: str) -> frozenset[str]:
    return frozenset(codes)


GIVEN_UP = _may("OK", "CANCELLED")
# A server that sees that there is not enough time refuses at once.
LATE = _may("OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
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
    Kind(6, faults.cancelled, GIVEN_UP),
    Kind(6, faults.late, LATE),
    Kind(2, faults.many_left, GIVEN_UP),
    Kind(4, faults.stream_cancelled, GIVEN_UP),
    Kind(4, faults.stream_late, LATE),
    Kind(1, faults.slow_reader),
    Kind(3, faults.empty_text, _may("INVALID_ARGUMENT")),
    Kind(3, faults.unknown_model, _may("NOT_FOUND")),
    Kind(3, faults.wrong_space, _may("FAILED_PRECONDITION")),
    Kind(3, faults.wrong_matrix, _may("INVALID_ARGUMENT")),
    Kind(3, faults.malformed, _may("INVALID_ARGUMENT", "INTERNAL")),
    Kind(1, faults.too_many_texts, _may("INVALID_ARGUMENT")),
    Kind(1, faults.oversized, _may("RESOURCE_EXHAUSTED")),
    Kind(3, faults.unknown_method, _may("UNIMPLEMENTED")),
    Kind(1, faults.same_id, _may("INVALID_ARGUMENT")),
)


class Tally:
    """What has happened since it was last told."""

    def __init__(self, shared: calls.Shared) -> None:
        self._shared = shared
        self._ends: collections.Counter[str] = collections.Counter()
        self._unexpected: list[str] = []

    async def one(self, kind: Kind) -> None:
        """Makes a call of a kind, and notes how it ended."""
        name, said = getattr(kind.make, "__name__", ""), ""
        try:
            end = await kind.make(self._shared) or "OK"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is an end
            end, said = faults.code_of(error), str(error)[:300]
        self._ends[f"{name} {end}"] += 1
        if end not in kind.ends:
            self._unexpected.append(f"{name} {end}: {said}")

    def tell(self) -> None:
        """Prints it, and begins anew."""
        told = {
            "texts": self._shared.done_texts,
            "interactive_ms": self._shared.interactive_ms,
            "ends": dict(self._ends),
            "unexpected": self._unexpected,
        }
        print(json.dumps(told), flush=True)
        self._shared.done_texts, self._shared.interactive_ms = 0, []
        self._ends.clear()
        self._unexpected = []


async def load(shared: calls.Shared) -> None:
    """Keeps CALLERS callers busy until SIGTERM."""
    stopped, tally = asyncio.Event(), Tally(shared)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def caller() -> None:
        while not stopped.is_set():
            [kind] = shared.random.choices(KINDS, [kind.weight for kind in KINDS])
            await tally.one(kind)
            await asyncio.sleep(PAUSE_S)

    async def teller() -> None:
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            tally.tell()

    telling = asyncio.create_task(teller())
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    telling.cancel()
    tally.tell()


async def main(address: str, seed: str, *known: str) -> None:
    """Makes the clients, loads the server, closes them."""
    of_models = dict(one.rsplit("=", 1) for one in known)
    options: Any = [("grpc.max_send_message_length", -1)]
    with Client(address) as blocking:
        async with AsyncClient(address) as client, grpc.aio.insecure_channel(address, options=options) as channel:
            shared = calls.Shared(
                address=address,
                models=list(of_models),
                known={model: bytes.fromhex(told) for model, told in of_models.items()},
                random=random.Random(int(seed)),  # noqa: S311 - nothing secret
                client=client,
                blocking=blocking,
                channel=channel,
            )
            await load(shared)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
