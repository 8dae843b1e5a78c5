"""Load generator of the `keys` workload: the calls of one caller, with the API key in the variable BENCHMARK_KEY.

    python -m benchmarks.drivers.keys ADDRESS capacity SECONDS
    python -m benchmarks.drivers.keys ADDRESS quiet SECONDS TEXTS_PER_S TEXTS_PER_CALL
    python -m benchmarks.drivers.keys ADDRESS greedy TEXTS_PER_S

`capacity` makes calls in a closed loop. The others make them at a rate, at random times, whether earlier ones have
ended or not: `quiet` for SECONDS, `greedy` until SIGTERM. Each prints its figures as one JSON object at its end.
"""

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import uvloop
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import workloads
from benchmarks.drivers.mixed import OPTIONS, Measured
from benchmarks.drivers.soak_calls import SERVICE

KEY_VARIABLE = "BENCHMARK_KEY"
TEXTS_PER_CALL = 8  # of `capacity` and `greedy`: about as many tokens as INTERACTIVE batches have beside other work
CAPACITY_CALLERS = 8
MESSAGES = 400
DEADLINE_S = 10.0
CHANNELS = 4  # for `greedy`; a connection has at most --max-connection-calls calls

Embed = Callable[[bytes], Awaitable[Any]]


def messages(texts_per_call: int) -> list[bytes]:
    """Returns requests of short texts if they have one each, else of texts of mixed lengths."""
    workload = workloads.WORKLOADS["single" if texts_per_call == 1 else "batch"]
    texts = workloads.texts(workload, MESSAGES * texts_per_call)
    random.Random(workloads.SEED).shuffle(texts)  # noqa: S311 - not for cryptography; later texts are longer
    parts = (texts[first : first + texts_per_call] for first in range(0, len(texts), texts_per_call))
    return [pb.EmbedRequest(texts=part).SerializeToString() for part in parts]


def with_key(method: Any, key: str) -> Embed:
    """Returns a function that calls a method with the key and the deadline."""
    metadata = (("authorization", f"Bearer {key}"),)

    async def embed(message: bytes) -> Any:
        return await method(message, metadata=metadata, timeout=DEADLINE_S)

    return embed


async def closed_loop(embed: Embed, requests: Sequence[bytes], callers: int, seconds: float) -> float:
    """Returns the calls a second of concurrent callers, each of which waits for its response."""
    calls, start_s = 0, time.perf_counter()

    async def caller() -> None:
        nonlocal calls
        while time.perf_counter() - start_s < seconds:
            await embed(requests[calls % len(requests)])
            calls += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls / (time.perf_counter() - start_s)


async def open_loop(
    methods: Sequence[Embed], requests: Sequence[bytes], calls_per_s: float, seconds: float
) -> dict[str, Any]:
    """Makes calls at the times of a Poisson process until `seconds` have passed or it is cancelled.

    Returns:
        The outcomes and the percentiles of the latencies; calls in flight at a cancellation do not count.
    """
    measured, calls = Measured(), set[asyncio.Task[None]]()
    rng = random.Random(workloads.SEED)  # noqa: S311 - not for cryptography
    start_s = time.perf_counter()
    due_s, number = start_s, 0
    try:
        while (due_s := due_s + rng.expovariate(calls_per_s)) < start_s + seconds:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            embed = methods[number % len(methods)]
            calls.add(task := asyncio.create_task(measured.add(embed(requests[number % len(requests)]))))
            task.add_done_callback(calls.discard)
            number += 1
        await asyncio.gather(*calls)
    except asyncio.CancelledError:
        for task in calls:
            task.cancel()
    return measured.figures()


async def main(address: str, role: str, *arguments: str) -> None:
    """Runs one load generator and prints its figures."""
    numbers, key = [*map(float, arguments)], os.environ[KEY_VARIABLE]
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options=OPTIONS))
            for _ in range(CHANNELS)
        ]
        methods = [with_key(channel.unary_unary(f"/{SERVICE}/Embed"), key) for channel in channels]
        if role == "capacity":
            calls_per_s = await closed_loop(methods[0], messages(TEXTS_PER_CALL), CAPACITY_CALLERS, numbers[0])
            figures: dict[str, Any] = {"texts_per_s": calls_per_s * TEXTS_PER_CALL}
        elif role == "quiet":
            seconds, texts_per_s, texts = numbers
            figures = await open_loop(methods[:1], messages(int(texts)), texts_per_s / texts, seconds)
        else:
            calls = open_loop(methods, messages(TEXTS_PER_CALL), numbers[0] / TEXTS_PER_CALL, math.inf)
            running = asyncio.create_task(calls)  # type: ignore[arg-type]  # it is a coroutine
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
            figures = await running
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
