"""The first figures: start, memory, and texts per second of the bundled model, each beside its references.

    python -m benchmarks --work bundled [--rounds N] [--json FILE]

Every round takes every system in turn; figures are medians over the rounds, ratios are taken round by round. One caller
keeps IN_FLIGHT calls in flight from a process of its own, on the machine's same cores.
"""

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.models import model_folder
from isogloss_server.models.static import load

from benchmarks.processes import Running, running, running_service

TEXTS = Path(__file__).with_name("texts.tsv")
METHOD = "/isogloss.v1.EmbeddingService/Embed"
IN_FLIGHT = 8
SECONDS = 1.5  # of load for each system in a round
WORKS = {"single": 1, "batch": 256}  # texts a call


def sample() -> list[str]:
    """Returns the sentences, of 38 languages in turn."""
    lines = TEXTS.read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if not line.startswith("#")]


def requests(work: str, texts: Sequence[str], count_tokens: Callable[[Sequence[str]], list[int]]) -> list[list[str]]:
    """Returns the texts of each call: one of 8 to 16 tokens, or 256 as they come."""
    if work == "single":
        return [[text] for text, count in zip(texts, count_tokens(texts), strict=True) if 8 <= count <= 16]
    size = WORKS[work]
    return [list(texts[first : first + size]) for first in range(0, len(texts), size)]


async def calls_per_s(address: str, payloads: Sequence[bytes]) -> float:
    """Returns how many calls a second are answered with IN_FLIGHT calls in flight."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(METHOD)
        await asyncio.gather(*(call(payload) for payload in payloads[:IN_FLIGHT]))
        done, began_s = 0, time.perf_counter()

        async def caller(first: int) -> None:
            nonlocal done
            place = first
            while time.perf_counter() - began_s < SECONDS:
                await call(payloads[place % len(payloads)])
                place += IN_FLIGHT
                done += 1

        await asyncio.gather(*(caller(first) for first in range(IN_FLIGHT)))
        return done / (time.perf_counter() - began_s)


def tokenized_per_s(tokenizer: Any, calls: Sequence[Sequence[str]]) -> float:
    """Returns how many calls' texts the tokenizer alone takes a second, in this process."""
    done, began_s = 0, time.perf_counter()
    while time.perf_counter() - began_s < SECONDS:
        tokenizer.encode_batch_fast(calls[done % len(calls)], add_special_tokens=False)
        done += 1
    return done / (time.perf_counter() - began_s)


def answer_bytes(service: Running, payload: bytes) -> int:
    """Returns the size of the service's answer, which the echo is to have as well."""
    with grpc.insecure_channel(service.address) as channel:
        return len(channel.unary_unary(METHOD)(payload))


def measure_round(texts: Sequence[str], tokens: Any) -> dict[str, dict[str, float]]:
    """Returns the figures of one round: work -> system -> texts a second, and the service's start and memory."""
    figures: dict[str, dict[str, float]] = {}
    tokenizer = tokens._tokenizer  # noqa: SLF001 - the bare tokenizer is what is to be timed
    with running_service() as service:
        start = {"serving_s": service.started_s, "resident_mb": service.status("VmRSS") / 1024}
        for work, size in WORKS.items():
            calls = requests(work, texts, lambda lines: [len(e.ids) for e in tokenizer.encode_batch(lines)])
            payloads = [pb.EmbedRequest(texts=call).SerializeToString() for call in calls]
            with running("benchmarks.echo", "PORT_FILE", str(answer_bytes(service, payloads[0]))) as echo:
                before_s = service.cpu_s()
                began_s = time.perf_counter()
                answered = uvloop.run(calls_per_s(service.address, payloads))
                cpu_share = (service.cpu_s() - before_s) / (time.perf_counter() - began_s)
                echoed = uvloop.run(calls_per_s(echo.address, payloads))
            figures[work] = {
                "isogloss": answered * size,
                "echo": echoed * size,
                "tokenizer": tokenized_per_s(tokenizer, calls) * size,
                "isogloss_cores": cpu_share,
            }
        start["resident_after_load_mb"] = service.status("VmRSS") / 1024
    figures["start"] = start
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def report(rounds: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Returns all figures, and the ratios taken round by round."""
    figures = {
        work: {name: spread([one[work][name] for one in rounds]) for name in rounds[0][work]} for work in rounds[0]
    }
    ratios = {
        f"{work}: isogloss/{reference}": spread([one[work]["isogloss"] / one[work][reference] for one in rounds])
        for work in WORKS
        for reference in ("echo", "tokenizer")
    }
    slower = [one["batch"]["isogloss"] / min(one["batch"]["echo"], one["batch"]["tokenizer"]) for one in rounds]
    ratios["batch: isogloss/slower reference"] = spread(slower)
    return {
        "command": "python -m benchmarks --work bundled",
        "rounds": len(rounds),
        "in_flight": IN_FLIGHT,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "figures": figures,
        "ratios": ratios,
    }


def run(rounds: int) -> dict[str, Any]:
    """Returns the report of `rounds` rounds."""
    texts, tokens = sample(), load(model_folder.locate(model_folder.BUNDLED)).tokenizer
    return report([measure_round(texts, tokens) for _ in range(rounds)])
