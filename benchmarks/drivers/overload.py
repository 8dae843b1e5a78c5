"""Load generator of the `overload` workload: runs one phase and prints its figures as one JSON object.

python -m benchmarks.drivers.overload ADDRESS capacity|quiet|overload|beside-bulk SECONDS [CALLS_PER_S]
"""

import asyncio
import collections
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
import uvloop
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import workloads

SERVICE = "/isogloss.v1.EmbeddingService"
BATCH_TEXTS = 32
CALLERS = 8
DEADLINE_S = 2.0  # of each call in the overload phase
HEALTH_INTERVAL_S = 0.05
BULK_CALLERS = 64  # concurrent callers of priority BULK with BATCH_TEXTS texts in a call
CHANNELS = 8


class Load:
    """Makes the calls of each phase over several connections."""

    def __init__(self, address: str) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)]
        self._embed: list[Any] = [channel.unary_unary(f"{SERVICE}/Embed") for channel in channels]
        self._health: Any = grpc.aio.insecure_channel(address, options=options).unary_unary(f"{SERVICE}/Health")
        self._batches = self._messages("batch", BATCH_TEXTS, 200)
        self._bulk = self._messages("batch", BATCH_TEXTS, 200, priority=pb.PRIORITY_BULK)
        self._singles = self._messages("single", 1, 400)
        self._health_ms: list[float] = []

    @staticmethod
    def _messages(workload: str, size: int, n: int, **fields: Any) -> list[bytes]:
        texts = workloads.texts(workloads.WORKLOADS[workload], size * n)
        # Later texts are longer, and no phase sends all of them.
        random.Random(workloads.SEED).shuffle(texts)  # noqa: S311 - not for cryptography
        batches = (texts[first : first + size] for first in range(0, len(texts), size))
        return [pb.EmbedRequest(texts=batch, **fields).SerializeToString() for batch in batches]

    async def capacity(self, seconds: float) -> dict[str, Any]:
        """Measures the closed-loop throughput of CALLERS concurrent callers of batches."""
        return await self._closed(self._batches, CALLERS, seconds)

    async def quiet(self, seconds: float) -> dict[str, Any]:
        """Measures the latency of a single caller of single texts on an idle server."""
        return {"interactive": await self._probes(seconds)}

    async def overload(self, seconds: float, calls_per_s: float) -> dict[str, Any]:
        """Sends batches at a fixed rate (open loop); measures their status codes and latency, and that of Health."""
        outcomes: collections.Counter[str] = collections.Counter()
        latencies_ms: list[float] = []
        steady = 0  # responses after the first DEADLINE_S seconds, in which the queue fills

        async def send(number: int) -> None:
            nonlocal steady
            sent_s = time.perf_counter()
            try:
                await self._embed[number % CHANNELS](self._batches[number % 200], timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
            else:
                outcomes["OK"] += 1
                steady += DEADLINE_S <= time.perf_counter() - start_s < seconds
                latencies_ms.append((time.perf_counter() - sent_s) * 1000)

        start_s = time.perf_counter()
        health = asyncio.create_task(self._poll_health())
        calls: set[asyncio.Task[None]] = set()
        for number in range(int(seconds * calls_per_s)):
            due_s = start_s + number / calls_per_s
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            calls.add(task := asyncio.create_task(send(number)))
            task.add_done_callback(calls.discard)
        sent_s = time.perf_counter() - start_s
        await asyncio.gather(*calls)
        health.cancel()
        return {
            "texts_per_s": steady * BATCH_TEXTS / (seconds - DEADLINE_S),
            "offered_calls_per_s": int(seconds * calls_per_s) / sent_s,
            "outcomes": dict(outcomes),
            "answered": percentiles(latencies_ms),
            "health": percentiles(self._health_ms),
        }

    async def beside_bulk(self, seconds: float) -> dict[str, Any]:
        """Measures the latency of a single caller of single texts while BULK_CALLERS saturate the server."""
        bulk = asyncio.create_task(self._closed(self._bulk, BULK_CALLERS, seconds))
        await asyncio.sleep(seconds / 8)
        interactive = await self._probes(seconds * 6 / 8)
        return {"interactive": interactive, "bulk": await bulk}

    async def _closed(self, messages: Sequence[bytes], callers: int, seconds: float) -> dict[str, Any]:
        done, failed, start_s = 0, 0, time.perf_counter()
        following = itertools.cycle(messages)  # calls at the same time differ, so that none shares the rows of another

        async def caller(number: int) -> None:
            nonlocal done, failed
            while time.perf_counter() - start_s < seconds:
                try:
                    await self._embed[number % CHANNELS](next(following))
                    done += 1
                except grpc.aio.AioRpcError:
                    failed += 1
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(caller(number) for number in range(callers)))
        wall_s = time.perf_counter() - start_s
        return {"texts_per_s": done * BATCH_TEXTS / wall_s, "calls_per_s": done / wall_s, "failed": failed}

    async def _probes(self, seconds: float) -> dict[str, float]:
        latencies_ms: list[float] = []
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < seconds:
            latencies_ms.append(await timed_ms(self._embed[0], self._singles[len(latencies_ms) % 400]))
            await asyncio.sleep(0.01)
        return percentiles(latencies_ms)

    async def _poll_health(self) -> None:
        while True:
            self._health_ms.append(await timed_ms(self._health, b""))
            await asyncio.sleep(HEALTH_INTERVAL_S)


async def timed_ms(call: Callable[[bytes], Awaitable[bytes]], message: bytes) -> float:
    """Returns the latency of a call in milliseconds."""
    start_s = time.perf_counter()
    await call(message)
    return (time.perf_counter() - start_s) * 1000


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Returns median, 99th percentile, maximum and count."""
    if not latencies_ms:
        return {"p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0, "calls": 0}
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(latencies_ms), "calls": len(latencies_ms)}


async def main(address: str, phase: str, *numbers: str) -> None:
    """Runs one phase and prints its figures."""
    method = getattr(Load(address), phase.replace("-", "_"))
    print(json.dumps(await method(*map(float, numbers))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
