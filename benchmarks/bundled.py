"""Workload `bundled`: start-up time, memory and throughput of the bundled model, compared with two references.

    python -m benchmarks --work bundled [--rounds N] [--json FILE]

Each round measures the service and both references. Figures are medians over the rounds, ratios are within a round.
This process keeps IN_FLIGHT calls in flight, on the same cores as the server.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import uvloop
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.models import model_folder
from isogloss_server.models.static import load

from benchmarks.processes import RunningProcess, running_module, running_service
from benchmarks.report import machine, spread
from benchmarks.workloads import mixed_sentences

METHOD = "/isogloss.v1.EmbeddingService/Embed"
IN_FLIGHT = 8
SECONDS = 1.5  # of load on each system in a round
TEXTS_PER_CALL = {"single": 1, "batch": 256}


def requests(load: str, texts: Sequence[str], count_tokens: Callable[[Sequence[str]], list[int]]) -> list[list[str]]:
    """Returns the texts of each call: single texts of 8 to 16 tokens, or batches of 256 texts of any length."""
    if load == "single":
        return [[text] for text, count in zip(texts, count_tokens(texts), strict=True) if 8 <= count <= 16]
    size = TEXTS_PER_CALL[load]
    return [list(texts[first : first + size]) for first in range(0, len(texts), size)]


async def calls_per_s(address: str, payloads: Sequence[bytes]) -> float:
    """Returns the completed calls per second with IN_FLIGHT calls in flight."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(METHOD)
        await asyncio.gather(*(call(payload) for payload in payloads[:IN_FLIGHT]))
        done, start_s = 0, time.perf_counter()

        async def caller(first: int) -> None:
            nonlocal done
            index = first
            while time.perf_counter() - start_s < SECONDS:
                await call(payloads[index % len(payloads)])
                index += IN_FLIGHT
                done += 1

        await asyncio.gather(*(caller(first) for first in range(IN_FLIGHT)))
        return done / (time.perf_counter() - start_s)


def tokenized_per_s(tokenizer: Any, calls: Sequence[Sequence[str]]) -> float:
    """Returns the calls per second whose texts the tokenizer alone processes, in this process."""
    done, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < SECONDS:
        tokenizer.encode_batch_fast(calls[done % len(calls)], add_special_tokens=False)
        done += 1
    return done / (time.perf_counter() - start_s)


def response_bytes(service: RunningProcess, payload: bytes) -> int:
    """Returns the size of the response of the service, which the echo server uses too."""
    with grpc.insecure_channel(service.address) as channel:
        return len(channel.unary_unary(METHOD)(payload))


def measure_round(texts: Sequence[str], tokens: Any) -> dict[str, dict[str, float]]:
    """Measures one round: texts per second by load and system, and start-up time and memory of the service."""
    figures: dict[str, dict[str, float]] = {}
    tokenizer = tokens._tokenizer  # noqa: SLF001 - the reference is the tokenizer without its wrapper
    with running_service() as service:
        start = {"serving_s": service.started_s, "resident_mb": service.resident_bytes() / 1024**2}
        for load_name, size in TEXTS_PER_CALL.items():
            calls = requests(load_name, texts, lambda lines: [len(e.ids) for e in tokenizer.encode_batch(lines)])
            payloads = [pb.EmbedRequest(texts=call).SerializeToString() for call in calls]
            size_of_response = str(response_bytes(service, payloads[0]))
            with running_module("benchmarks.drivers.echo_server", "PORT_FILE", size_of_response) as echo:
                before_s = service.cpu_s()
                start_s = time.perf_counter()
                served = uvloop.run(calls_per_s(service.address, payloads))
                cpu_share = (service.cpu_s() - before_s) / (time.perf_counter() - start_s)
                echoed = uvloop.run(calls_per_s(echo.address, payloads))
            figures[load_name] = {
                "isogloss": served * size,
                "echo": echoed * size,
                "tokenizer": tokenized_per_s(tokenizer, calls) * size,
                "isogloss_cores": cpu_share,
            }
        start["resident_after_load_mb"] = service.resident_bytes() / 1024**2
    figures["start"] = start
    return figures


def report(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Returns the report of all rounds: figures, and ratios within each round."""
    figures = {
        load: {name: spread([samples[load][name] for samples in rounds]) for name in rounds[0][load]}
        for load in rounds[0]
    }
    ratios = {
        f"{load}: isogloss/{reference}": spread(
            [samples[load]["isogloss"] / samples[load][reference] for samples in rounds]
        )
        for load in TEXTS_PER_CALL
        for reference in ("echo", "tokenizer")
    }
    batches = [samples["batch"] for samples in rounds]
    ratios["batch: isogloss/slower reference"] = spread(
        [batch["isogloss"] / min(batch["echo"], batch["tokenizer"]) for batch in batches]
    )
    return {
        "command": "python -m benchmarks --work bundled",
        "rounds": len(rounds),
        "in_flight": IN_FLIGHT,
        "machine": machine(),
        "figures": figures,
        "ratios": ratios,
    }


def run(rounds: int) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report."""
    texts, tokens = mixed_sentences(), load(model_folder.locate(model_folder.BUNDLED)).tokenizer
    return report([measure_round(texts, tokens) for _ in range(rounds)])
