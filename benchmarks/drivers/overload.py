"""The load of the overload benchmark, a process of its own: each phase prints its figures as one JSON object.

python -m benchmarks.drivers.overload ADDRESS capacity|quiet|overload|beside-bulk SECONDS [CALLS_A_SECOND]
"""

import asyncio
import collections
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
DEADLINE_S = 2.0  # of a call under overload: who embeds a query does not wait longer
PROBE_EVERY_S = 0.05
BULK_CALLERS = 64  # each with BATCH_TEXTS texts in a call of priority BULK, the next as soon as one is answered
CHANNELS = 8


class Load:
    """Calls to one server over several connections."""

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
    def _messages(work: str, size: int, n: int, **fields: Any) -> list[bytes]:
        texts = workloads.texts(workloads.WORKLOADS[work], size * n)
        random.Random(workloads.SEED).shuffle(texts)  # noqa: S311 - the last ones are longer, and no phase makes all calls
        cut = (texts[first : first + size] for first in range(0, len(texts), size))
        return [pb.EmbedRequest(texts=part, **fields).SerializeToString() for part in cut]

    async def capacity(self, seconds: float) -> dict[str, Any]:
        """Returns what CALLERS callers get, each with its next call as soon as one is answered."""
        return await self._closed(self._batches, CALLERS, seconds)

    async def quiet(self, seconds: float) -> dict[str, Any]:
        """Returns the latencies of one caller of single texts, beside nobody."""
        return {"interactive": await self._probes(seconds)}

    async def overload(self, seconds: float, calls_a_second: float) -> dict[str, Any]:
        """Returns what becomes of calls that come at a rate, whatever the server does, and of Health meanwhile."""
        outcomes: collections.Counter[str] = collections.Counter()
        latencies_ms: list[float] = []
        settled = 0  # answers from the moment on when the queue is as full as it gets

        async def one(number: int) -> None:
            nonlocal settled
            sent_s = time.perf_counter()
            try:
                await self._embed[number % CHANNELS](self._batches[number % 200], timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
            else:
                outcomes["OK"] += 1
                settled += DEADLINE_S <= time.perf_counter() - began_s < seconds
                latencies_ms.append((time.perf_counter() - sent_s) * 1000)

        began_s = time.perf_counter()
        health = asyncio.create_task(self._watch_health())
        calls: set[asyncio.Task[None]] = set()
        for number in range(int(seconds * calls_a_second)):
            due_s = began_s + number / calls_a_second
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            calls.add(task := asyncio.create_task(one(number)))
            task.add_done_callback(calls.discard)
        sent_s = time.perf_counter() - began_s
        await asyncio.gather(*calls)
        health.cancel()
        return {
            "texts_per_s": settled * BATCH_TEXTS / (seconds - DEADLINE_S),
            "offered_calls_per_s": int(seconds * calls_a_second) / sent_s,
            "outcomes": dict(outcomes),
            "answered": percentiles(latencies_ms),
            "health": percentiles(self._health_ms),
        }

    async def beside_bulk(self, seconds: float) -> dict[str, Any]:
        """Returns the latencies of one caller of single texts while BULK_CALLERS keep the server busy."""
        bulk = asyncio.create_task(self._closed(self._bulk, BULK_CALLERS, seconds))
        await asyncio.sleep(seconds / 8)
        interactive = await self._probes(seconds * 6 / 8)
        return {"interactive": interactive, "bulk": await bulk}

    async def _closed(self, messages: Sequence[bytes], callers: int, seconds: float) -> dict[str, Any]:
        done, failed, began_s = 0, 0, time.perf_counter()

        async def caller(number: int) -> None:
            nonlocal done, failed
            while time.perf_counter() - began_s < seconds:
                try:
                    await self._embed[number % CHANNELS](messages[(number + done) % len(messages)])
                    done += 1
                except grpc.aio.AioRpcError:
                    failed += 1
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(caller(number) for number in range(callers)))
        wall_s = time.perf_counter() - began_s
        return {"texts_per_s": done * BATCH_TEXTS / wall_s, "calls_per_s": done / wall_s, "failed": failed}

    async def _probes(self, seconds: float) -> dict[str, float]:
        latencies_ms: list[float] = []
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < seconds:
            latencies_ms.append(await timed_ms(self._embed[0], self._singles[len(latencies_ms) % 400]))
            await asyncio.sleep(0.01)
        return percentiles(latencies_ms)

    async def _watch_health(self) -> None:
        while True:
            self._health_ms.append(await timed_ms(self._health, b""))
            await asyncio.sleep(PROBE_EVERY_S)


async def timed_ms(call: Callable[[bytes], Awaitable[bytes]], message: bytes) -> float:
    """Returns the milliseconds until a call is answered."""
    began_s = time.perf_counter()
    await call(message)
    return (time.perf_counter() - began_s) * 1000


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """Returns median, 99th percentile, greatest and number."""
    if not latencies_ms:
        return {"p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0, "calls": 0}
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(latencies_ms), "calls": len(latencies_ms)}


async def main(address: str, phase: str, *numbers: str) -> None:
    """Makes one phase's calls, and prints what became of them."""
    method = getattr(Load(address), phase.replace("-", "_"))
    print(json.dumps(await method(*map(float, numbers))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
