"""Provider errors: the status, reason and retries of each kind of failure, with the real SDKs."""

import asyncio
import ssl
from typing import Any

import numpy as np
import pytest
import trustme
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import InputType, Truncation
from isogloss_server.errors import DomainError
from isogloss_server.models.interfaces import Urgency

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Ending, Scripted, changed
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, SMALL, failure, remote

TIMEOUT_S = 30.0
BEFORE_THE_FIRST_PROBE_S = (
    4.0  # a probe cancelled during its TLS handshake would leave its socket to the garbage collector
)
HTML = {"Content-Type": "text/html"}
PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
TEXTS = ["one", "two"]
RATE_LIMIT = ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMIT")
UNAVAILABLE = ("UNAVAILABLE", "PROVIDER_UNAVAILABLE")
RESPONSE = ("UNAVAILABLE", "PROVIDER_ANSWER")
REFUSED = ("INVALID_ARGUMENT", "PROVIDER_REFUSED")
CREDENTIALS = ("FAILED_PRECONDITION", "PROVIDER_CREDENTIALS")
MODEL = ("FAILED_PRECONDITION", "PROVIDER_MODEL")
TRANSIENT = {  # a retry may succeed
    "429": (Scripted(status=429), RATE_LIMIT),
    "429 as a page": (Scripted(status=429, headers=HTML, body=PAGE), RATE_LIMIT),
    "500": (Scripted(status=500), UNAVAILABLE),
    "503": (Scripted(status=503), UNAVAILABLE),
    "502 as a page": (Scripted(status=502, headers=HTML, body=PAGE), UNAVAILABLE),
    "504 without a body": (Scripted(status=504, body=b""), UNAVAILABLE),
    "200 as a page": (Scripted(headers=HTML, body=PAGE), RESPONSE),
    "malformed JSON": (Scripted(body=b'{"data": [{"embedding": '), RESPONSE),
    "no JSON": (Scripted(body=b"\xff\xfe\x00"), RESPONSE),
    "no body": (Scripted(body=b""), RESPONSE),
    "null": (Scripted(body=b"null"), RESPONSE),
    "a list": (Scripted(body=b"[1, 2]"), RESPONSE),
    "an empty object": (Scripted(body=b"{}"), RESPONSE),
    "words for vectors": (Scripted(body=b'{"data": "?", "embeddings": "?", "usage": "?", "meta": "?"}'), RESPONSE),
    "numbers for vectors": (Scripted(body=b'{"data": [1, 2], "embeddings": {"base64": [1, 2]}}'), RESPONSE),
    "too few vectors": (changed(lambda rows: rows[:-1]), RESPONSE),
    "no vectors": (changed(lambda rows: rows[:0]), RESPONSE),
    "too many vectors": (changed(lambda rows: np.concatenate([rows, rows])), RESPONSE),
    "narrow vectors": (changed(lambda rows: rows[:, :-1]), RESPONSE),
    "wide vectors": (changed(lambda rows: np.pad(rows, ((0, 0), (0, 1)))), RESPONSE),
    "not a number": (changed(lambda rows: np.where(np.arange(rows.shape[1]) == 7, np.nan, rows)), RESPONSE),
    "infinite": (changed(lambda rows: np.where(rows == rows[1, -1], np.inf, rows)), RESPONSE),
    "reset in the body": (Scripted(ending=Ending.RESET), UNAVAILABLE),
    "closed without a response": (Scripted(ending=Ending.SILENT), UNAVAILABLE),
}
PERMANENT = {  # not retried
    "400": (Scripted(status=400), REFUSED),
    "413 as a page": (Scripted(status=413, headers=HTML, body=PAGE), REFUSED),
    "422": (Scripted(status=422), REFUSED),
    "401": (Scripted(status=401), CREDENTIALS),
    "403": (Scripted(status=403), CREDENTIALS),
    "498": (Scripted(status=498), CREDENTIALS),
    "404": (Scripted(status=404), MODEL),
}


@pytest.mark.parametrize("name", [*TRANSIENT, *PERMANENT])
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_failure_has_its_status_and_reason_within_the_deadline(source: str, name: str) -> None:
    """Each failure has its status and reason; the call is retried if that may help, but never after the deadline."""
    scripted, due = (TRANSIENT | PERMANENT)[name]
    clock = ManualClock()
    with FakeProvider(key=KEY, now_s=clock.monotonic_s) as fake:
        fake.always = scripted
        async with remote(fake, source, clock) as m:
            began_s = clock.now_s
            told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=TIMEOUT_S)))
    attempts_s = [request.moment_s - began_s for request in fake.requests if request.texts == TEXTS]
    assert (told.code, told.reason) == due
    assert (len(attempts_s) > 1) == (name in TRANSIENT)
    assert max(attempts_s) < TIMEOUT_S
    assert (told.retry_s is None) == (name in PERMANENT)
    assert told.pushback_ms == -1  # the server has used the retries: a client that repeats them would multiply them


@pytest.mark.parametrize("name", TRANSIENT)
@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_transient_failure_is_retried(source: str, name: str) -> None:
    """After two failures and a success, the caller has the vectors of a provider that never failed."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.script.extend([TRANSIENT[name][0]] * 2)
        async with remote(fake, source, clock) as m:
            request = pb.EmbedRequest(texts=TEXTS)
            first = await clock.run_until_done(m.stub.Embed(request, timeout=TIMEOUT_S))
            second = await m.stub.Embed(request, timeout=TIMEOUT_S)
    assert first.embeddings == second.embeddings
    assert [request.texts for request in fake.requests] == [TEXTS] * 4


async def test_a_repeated_index_is_an_invalid_response() -> None:
    """A response with a repeated index, and another missing, is invalid even if the number of vectors is right."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(order=lambda n: [0] * n)
        async with remote(fake, SMALL, clock) as m:
            told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=TIMEOUT_S)))
    assert (told.code, told.reason) == RESPONSE


async def test_an_exhausted_quota_is_not_retried() -> None:
    """OpenAI's 429 with insufficient_quota is RESOURCE_EXHAUSTED without a retry, and health is DEGRADED."""
    clock = ManualClock()
    body = b'{"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota", "type": "?"}}'
    with FakeProvider(key=KEY) as fake:
        fake.always = Scripted(status=429, body=body)
        async with remote(fake, SMALL, clock) as m:
            told = await failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=TIMEOUT_S))
            health = (await m.stub.Health(pb.HealthRequest())).models[0]
    assert ((told.code, told.reason), len(fake.requests)) == (RATE_LIMIT, 1)
    assert health.status == pb.SERVING_STATUS_DEGRADED


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_an_untrusted_certificate(source: str) -> None:
    """A provider with an untrusted certificate is unreachable, and receives no request."""
    clock = ManualClock()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with FakeProvider(key=KEY, tls=context) as fake:
        async with remote(fake, source, clock) as m:
            call = failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=TIMEOUT_S))
            told = await clock.run_until_done(call, limit_s=BEFORE_THE_FIRST_PROBE_S)
    assert (told.code, told.reason) == UNAVAILABLE
    assert fake.requests == []


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_refused_connection(source: str) -> None:
    """A provider that refuses connections is UNAVAILABLE."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        pass
    async with remote(fake, source, clock) as m:
        told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=TEXTS), timeout=TIMEOUT_S)))
    assert (told.code, told.reason) == UNAVAILABLE


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_call_without_a_response_by_the_deadline(source: str) -> None:
    """A call without a response by the deadline is DEADLINE_EXCEEDED, not retried, and its connection is closed."""
    clock = ManualClock()
    with FakeProvider(key=KEY) as fake:
        fake.script.extend([Scripted(), Scripted(gate=fake.gate())])
        async with remote(fake, source, clock) as m:
            await m.embedder.embed(TEXTS, InputType.QUERY, Truncation.ERROR, Urgency())  # connects
            urgency = Urgency(deadline_s=clock.now_s + 0.3)
            with pytest.raises(DomainError) as raised:
                await m.embedder.embed(TEXTS, InputType.QUERY, Truncation.ERROR, urgency)
            for request in fake.requests[1:]:
                assert await asyncio.to_thread(request.cut.wait, 60)
    assert raised.value.reason == "DEADLINE_EXCEEDED"
    assert len(fake.requests) <= 2


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_a_cancelled_request_cancels_its_calls(source: str) -> None:
    """A cancelled RPC closes the connections of all its calls to the provider; the next RPC succeeds."""
    with FakeProvider(key=KEY) as fake:
        fake.script.extend(Scripted(gate=fake.gate()) for _ in range(2))
        async with remote(fake, source, ManualClock(), max_texts=1) as m:
            call = m.stub.Embed(pb.EmbedRequest(texts=TEXTS))
            waiting = asyncio.ensure_future(failure_of_cancelled(call))
            await asyncio.to_thread(fake.wait_for, 2)
            call.cancel()
            await waiting
            for request in tuple(fake.requests):
                assert await asyncio.to_thread(request.cut.wait, 60)
            assert (await m.stub.Embed(pb.EmbedRequest(texts=TEXTS))).embeddings.rows == 2


async def test_a_failed_chunk_cancels_the_others() -> None:
    """If one call of an RPC fails for good, its other calls are cancelled, so that they are not billed."""
    with FakeProvider(key=KEY) as fake:
        fake.script.extend([Scripted(gate=fake.gate()), Scripted(gate=fake.gate()), Scripted(status=400)])
        async with remote(fake, LIGHT, ManualClock(), max_texts=1) as m:
            told = await failure(m.stub.Embed(pb.EmbedRequest(texts=["one", "two", "three"])))
            for request in fake.requests[:2]:
                assert await asyncio.to_thread(request.cut.wait, 60)
    assert (told.code, told.reason) == REFUSED


async def failure_of_cancelled(call: Any) -> None:
    with pytest.raises(asyncio.CancelledError):
        await call
