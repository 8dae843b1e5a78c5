"""A provider's model on a clock that the test owns: the SDK against a fake provider, and gRPC in front of it."""

import asyncio
import atexit
import functools
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from isogloss_server import factory
from isogloss_server.engine.admission import Admission, AdmissionLimits
from isogloss_server.engine.backlog import Backlog, Throughput
from isogloss_server.engine.registry import ReadyModel, Registry, ServedModel
from isogloss_server.engine.request import Limits
from isogloss_server.models.providers import catalog
from isogloss_server.models.providers.embedder import ProviderEmbedder, ProviderLimits
from isogloss_server.models.providers.interface import Provider
from isogloss_server.tracing import Tracer
from pydantic import SecretStr

from tests.support.fake_provider import FakeProvider
from tests.support.in_process import serving
from tests.support.manual_clock import ManualClock

KEY = "sk-test-0123456789abcdefghij"
LIMITS = Limits(max_texts=2000, max_request_bytes=1 << 22, max_response_bytes=1 << 24, max_pairs=1 << 22)
LIGHT = "cohere:embed-multilingual-light-v3.0"
V4 = "cohere:embed-v4.0"
SMALL = "openai:text-embedding-3-small"
NIM = "nvidia:nvidia/nv-embedqa-e5-v5"
JITTER = 0.5  # so that the first attempt is followed by a wait of 0.25 s * (1 - 0.5 / 2), and each by one twice as long


@dataclass(frozen=True, slots=True)
class Remote:
    """A provider's model as the server holds it, and the stub that reaches it."""

    embedder: ProviderEmbedder
    model: ServedModel
    stub: Any


@dataclass(frozen=True, slots=True)
class Told:
    """What a failed call told."""

    code: str
    reason: str
    message: str
    retry_s: float | None  # of RetryInfo
    pushback_ms: int | None  # of the trailer that gRPC clients obey


@functools.cache
def authority() -> str:
    """Returns the file of an authority that signed nothing: to read the usual ones takes longer than a test."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    file = Path(folder.name) / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    return str(file)


def client_of(hosted: catalog.HostedModel) -> Provider:
    """Returns a provider's API on its SDK, as the server makes it."""
    with mock.patch.dict(os.environ, {"SSL_CERT_FILE": authority()}):
        return factory._client(hosted, SecretStr(KEY))


@asynccontextmanager
async def remote(
    fake: FakeProvider, source: str, clock: ManualClock, *, tracer: Tracer | None = None, **terms: Any
) -> AsyncIterator[Remote]:
    """Serves a model of the fake provider's as "m"; `terms` are those that differ from the provider's."""
    hosted = catalog.resolve(f"{source}@{fake.address}{'' if source.startswith('cohere') else '/v1'}")
    card = hosted.card(hosted.known.dimensions or (fake.widths[hosted.model],))
    card = replace(card, texts_per_call=hosted.provider.max_texts)
    usual = {"max_texts": hosted.provider.max_texts, "max_bytes": hosted.provider.max_bytes, "calls": 8}
    registry = Registry(["m"])
    model = registry.get("m")
    embedder = ProviderEmbedder(
        "m",
        client_of(hosted),
        card,
        ProviderLimits(**{**usual, "texts_per_minute": 0, "timeout_s": 60.0, **terms}),
        clock,
        on_health=functools.partial(model.health.report_degraded, "provider"),
        jitter=lambda: JITTER,
    )
    backlog = Backlog(Throughput(full_units=1, memory_units=16), lanes=8, turn=1)
    model.serve(ReadyModel(embedder, LIMITS, Admission("m", card, AdmissionLimits(bulk_slots=32), clock, backlog)))
    try:
        async with serving(registry, clock, tracer=tracer) as stub:
            yield Remote(embedder, model, stub)
    finally:
        embedder.close()
        await asyncio.shield(embedder._closing)


def told(error: Any) -> Told:
    """Returns what a call failed with."""
    trailers = dict(error.trailing_metadata() or ())
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found = False
    for packed in status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b"")).details:
        if packed.Is(info.DESCRIPTOR):
            packed.Unpack(info)
        found = packed.Unpack(retry) or found
    pushback = trailers.get("grpc-retry-pushback-ms")
    return Told(
        error.code().name,
        info.reason,
        error.details() or "",
        retry.retry_delay.ToMilliseconds() / 1e3 if found else None,
        None if pushback is None else int(pushback),
    )


async def failure(call: Any) -> Told:
    """Returns what a call fails with; the test fails where it does not."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return told(raised.value)


async def queued(m: Remote, calls: int) -> None:
    """Returns once so many calls to the provider wait for their turn."""
    async with asyncio.timeout(60):
        while len(waiters(m)) < calls:  # noqa: ASYNC110 - of which nobody tells
            await asyncio.sleep(0)


def waiters(m: Remote) -> list[Any]:
    """Returns the calls to the provider that wait for their turn, and those that were cancelled meanwhile."""
    return [waiter for waiting in m.embedder._rate_limiter._waiting.values() for waiter in waiting]
