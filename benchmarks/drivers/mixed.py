"""Load generators of the `mixed` workload.

    python -m benchmarks.drivers.mixed ADDRESS queries SECONDS
    python -m benchmarks.drivers.mixed ADDRESS work|hostile

`queries` makes queries and polls Health for SECONDS. The others make their calls until SIGTERM: `work` those of callers
with large but ordinary work, `hostile` one of each kind of hostile.py at a time. Each prints its figures as one JSON
object at its end.
"""

import asyncio
import collections
import json
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
import numpy as np
import uvloop
from isogloss import AsyncClient, Client
from isogloss.v1 import embedding_pb2 as pb

from benchmarks import workloads
from benchmarks.drivers import hostile
from benchmarks.drivers.hostile import Outcomes, outcome
from benchmarks.drivers.overload import percentiles
from benchmarks.drivers.soak_calls import SERVICE, Context

QUERY_CALLERS, QUERY_PAUSE_S, QUERY_DEADLINE_S = 8, 0.1, 5.0
HEALTH_INTERVAL_S = 0.05
PARAGRAPHS, PARAGRAPH_CHARS = 400, 2_000
DOCUMENTS, DOCUMENT_CHARS = 50, 200_000
# Rows and columns of two comparisons: nearly the defaults of max_pairs and max_request_bytes.
EQUAL_ROWS, EQUAL_COLUMNS = 2_000, 512  # of float32
WIDE_ROWS, WIDE_COLUMNS = 2_048, 2_000  # of int8
COMPARISON_DEADLINE_S = 60.0
PAUSE_S = 0.1  # between two calls of one caller
OPTIONS: Any = [
    ("grpc.use_local_subchannel_pool", 1),  # so that each caller has a connection of its own
    ("grpc.enable_retries", 0),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
# Seconds between two calls of a kind, and its numbers. The responses of `many_neighbors` and `unread_responses` are
# nearly as large as the default of max_response_bytes.
HOSTILE: Mapping[str, tuple[float, Callable[[Context], Awaitable[Outcomes]]]] = {
    "hex_digits": (1.0, hostile.hex_digits),
    "unknown_token": (1.0, hostile.unknown_token),
    "empty_strings": (1.0, hostile.empty_strings),
    "wide_matrix": (1.0, hostile.wide_matrix),
    "many_neighbors": (1.0, partial(hostile.many_neighbors, neighbors=1_800_000)),
    "burst": (5.0, partial(hostile.burst, calls=2_000)),
    "unread_streams": (2.0, partial(hostile.unread_streams, streams=40, texts=1_000, hold_s=4.0)),
    "unread_responses": (2.0, partial(hostile.unread_responses, calls=40, rows=2_000, hold_s=8.0)),
    "unfinished_requests": (2.0, partial(hostile.unfinished_requests, calls=200, sent_bytes=2_000_000, hold_s=8.0)),
}


def joined(sentences: Sequence[str], chars: int, rng: random.Random) -> str:
    """Returns random sentences, joined to a text of `chars` characters."""
    parts: list[str] = []
    length = 0
    while length < chars:
        parts.append(rng.choice(sentences))
        length += len(parts[-1]) + 1
    return " ".join(parts)[:chars]


def nearly_equal_rows(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Returns float32 [rows, columns]: half of the rows are equal, the others differ from them in one number."""
    result = np.ones((rows, columns), np.float32)
    result[rows // 2 :, 0] += rng.uniform(1e-6, 1e-4, rows - rows // 2)
    return result


class Measured:
    """The outcomes of calls, and the latencies of those that were answered."""

    def __init__(self) -> None:
        self._outcomes = Outcomes()
        self._latencies_ms: list[float] = []

    async def add(self, call: Awaitable[Any]) -> None:
        """Waits for a call and counts it."""
        start_s = time.perf_counter()
        result = await outcome(call)
        self._outcomes[result] += 1
        if result == "OK":
            self._latencies_ms.append((time.perf_counter() - start_s) * 1000)

    def figures(self) -> dict[str, Any]:
        """Returns the outcomes and the percentiles of the latencies."""
        return {"outcomes": self._outcomes, **percentiles(self._latencies_ms)}


async def measure(address: str, seconds: float) -> dict[str, Any]:
    """Measures short queries, each with a deadline, and Health beside them; both without retries."""
    texts = workloads.texts(workloads.WORKLOADS["single"], 2_000)
    messages = [pb.EmbedRequest(texts=[text]).SerializeToString() for text in texts]
    queries, health = Measured(), Measured()
    async with (
        grpc.aio.insecure_channel(address, options=OPTIONS) as channel,
        grpc.aio.insecure_channel(address, options=OPTIONS) as health_channel,
    ):
        embed: Any = channel.unary_unary(f"/{SERVICE}/Embed")
        check: Any = health_channel.unary_unary(f"/{SERVICE}/Health")
        end_s = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            rng = random.Random(number)  # noqa: S311 - not for cryptography
            await asyncio.sleep(rng.uniform(0, QUERY_PAUSE_S))
            while time.perf_counter() < end_s:
                await queries.add(embed(rng.choice(messages), timeout=QUERY_DEADLINE_S))
                await asyncio.sleep(QUERY_PAUSE_S)

        async def probe() -> None:
            while time.perf_counter() < end_s:
                await health.add(check(b"", timeout=hostile.CALL_LIMIT_S))
                await asyncio.sleep(HEALTH_INTERVAL_S)

        await asyncio.gather(probe(), *(caller(number) for number in range(QUERY_CALLERS)))
    return {"queries": queries.figures(), "health": health.figures()}


async def _until_stopped(callers: Mapping[str, tuple[float, Callable[[], Awaitable[Outcomes]]]]) -> dict[str, Any]:
    """Repeats the calls of each caller until SIGTERM; returns their outcomes by kind."""
    outcomes: dict[str, Outcomes] = collections.defaultdict(Outcomes)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def repeat(kind: str, pause_s: float, make: Callable[[], Awaitable[Outcomes]]) -> None:
        while True:
            outcomes[kind]["UNFINISHED"] += 1
            result = await make()
            outcomes[kind]["UNFINISHED"] -= 1
            outcomes[kind].update(result)
            await asyncio.sleep(pause_s)

    stopping = asyncio.create_task(stopped.wait())
    repeating = [asyncio.create_task(repeat(kind, *caller)) for kind, caller in callers.items()]
    ended, _ = await asyncio.wait({stopping, *repeating}, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()  # raises the error of a caller
    for task in repeating:
        task.cancel()
    await asyncio.wait(repeating)
    return {kind: +counts for kind, counts in outcomes.items()}


async def work(address: str) -> dict[str, Any]:
    """Makes the calls of callers with large work: paragraphs, documents and comparisons."""
    sentences, rng = workloads.mixed_sentences(), random.Random(workloads.SEED)  # noqa: S311 - not for cryptography
    async with (
        AsyncClient(address) as client,
        grpc.aio.insecure_channel(address, options=OPTIONS) as channel,
    ):
        transformer, static = await client.models()
        similarity: Any = channel.unary_unary(f"/{SERVICE}/Similarity")
        numbers = np.random.default_rng(workloads.SEED)
        equal = hostile.side(nearly_equal_rows(EQUAL_ROWS, EQUAL_COLUMNS, numbers), "float32", transformer.space_id)
        wide = hostile.side(numbers.normal(size=(WIDE_ROWS, WIDE_COLUMNS)), "int8", transformer.space_id)

        async def texts(model: str, count: int, chars: int) -> Outcomes:
            made = [joined(sentences, chars, rng) for _ in range(count)]
            return Outcomes([await outcome(client.embed(made, model=model))])

        async def compare(side: pb.Items, metric: Any) -> Outcomes:
            shape = rng.choice(({"all_pairs": pb.AllPairs()}, {"nearest": pb.Nearest(k=10)}))
            message = pb.SimilarityRequest(queries=side, metric=metric, **shape).SerializeToString()
            return Outcomes([await outcome(similarity(message, timeout=COMPARISON_DEADLINE_S))])

        return await _until_stopped(
            {
                "paragraphs": (PAUSE_S, partial(texts, transformer.name, PARAGRAPHS, PARAGRAPH_CHARS)),
                "documents": (PAUSE_S, partial(texts, static.name, DOCUMENTS, DOCUMENT_CHARS)),
                "euclidean": (PAUSE_S, partial(compare, equal, pb.METRIC_EUCLIDEAN)),
                "manhattan": (PAUSE_S, partial(compare, wide, pb.METRIC_MANHATTAN)),
            }
        )


async def hostile_calls(address: str) -> dict[str, Any]:
    """Makes the calls of each kind of hostile caller, on a connection for each."""
    texts = workloads.texts(workloads.WORKLOADS["batch"], 4_000)
    with Client(address) as blocking:
        async with AsyncClient(address) as client:
            models = [model.name for model in await client.models()]
            contexts = {
                kind: Context(
                    address=address,
                    models=models,
                    known={},
                    random=random.Random(kind),  # noqa: S311 - not for cryptography
                    client=client,
                    blocking=blocking,
                    channel=grpc.aio.insecure_channel(address, options=OPTIONS),
                    texts=texts,
                )
                for kind in HOSTILE
            }
            callers = {kind: (pause_s, partial(make, contexts[kind])) for kind, (pause_s, make) in HOSTILE.items()}
            return await _until_stopped(callers)


async def main(address: str, role: str, *seconds: str) -> None:
    """Runs one load generator and prints its figures."""
    roles: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "queries": measure,
        "work": work,
        "hostile": hostile_calls,
    }
    print(json.dumps(await roles[role](address, *map(float, seconds))), flush=True)


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
