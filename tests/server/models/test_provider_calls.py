"""Calls to a provider: chunks, order, duplicates, and the limit of calls in flight."""

import asyncio

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.fake_provider import FakeProvider
from tests.support.fake_provider_script import Scripted
from tests.support.fake_provider_wire import vectors_of
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY, LIGHT, SMALL, failure, remote
from tests.support.wire import array_of


def lines(n: int) -> list[str]:
    return [f"line {row}" for row in range(n)]


async def test_texts_are_sent_in_the_largest_chunks_and_return_in_order(fake: FakeProvider) -> None:
    """200 texts are concurrent calls of 96, 96 and 8; rows keep the order of the texts, whichever call ends first."""
    gate = fake.gate()
    fake.script.append(Scripted(gate=gate))
    async with remote(fake, LIGHT, ManualClock()) as m:
        answer = asyncio.ensure_future(m.stub.Embed(pb.EmbedRequest(texts=lines(200))))
        await asyncio.to_thread(fake.wait_for, 3)
        gate.open()
        rows = array_of((await answer).embeddings)
    assert sorted(len(request.texts) for request in fake.requests) == [8, 96, 96]
    due = vectors_of("embed-multilingual-light-v3.0", "search_document", lines(200), 384)
    np.testing.assert_allclose(rows, due, atol=1e-7)


async def test_calls_in_flight_are_bounded(fake: FakeProvider) -> None:
    """Calls in flight of all callers stay within the setting, and all texts arrive."""
    gates = [fake.gate() for _ in range(3)]
    fake.script.extend(Scripted(gate=gate) for gate in gates)
    async with remote(fake, LIGHT, ManualClock(), max_texts=10, calls=3) as m:
        parts = lines(50), [f"other {row}" for row in range(50)]
        calls = [asyncio.ensure_future(m.stub.Embed(pb.EmbedRequest(texts=part))) for part in parts]
        await asyncio.to_thread(fake.wait_for, 3)
        for gate in gates:
            gate.open()
        await asyncio.gather(*calls)
    assert (fake.most_in_flight, len(fake.requests)) == (3, 10)
    assert sorted(fake.texts) == sorted(parts[0] + parts[1])


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_equal_texts_are_sent_once(fake: FakeProvider, source: str) -> None:
    """Of equal texts in one request the provider receives, and bills, one; each has its row."""
    async with remote(fake, source, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["a", "b", "a", "a", "c", "b"]))
    rows = array_of(answer.embeddings)
    assert (fake.texts, answer.total_tokens) == (["a", "b", "c"], 3)
    np.testing.assert_array_equal(rows, rows[[0, 1, 0, 0, 4, 1]])
    assert len(np.unique(rows, axis=0)) == 3


async def test_calls_to_openai_stay_within_its_limit_of_bytes(fake: FakeProvider) -> None:
    """A call has at most 300,000 bytes of UTF-8, since a token has at least one byte."""
    async with remote(fake, SMALL, ManualClock()) as m:
        await m.stub.Embed(pb.EmbedRequest(texts=[f"{row}{'é' * 20_000}" for row in range(20)]))
    sizes = [sum(len(text.encode()) for text in request.texts) for request in fake.requests]
    assert len(sizes) == 3
    assert max(sizes) <= 300_000


async def test_an_empty_text_is_not_sent(fake: FakeProvider) -> None:
    """With allow_partial, a text of white space is a row of zeros with an error; the others are embedded."""
    async with remote(fake, LIGHT, ManualClock()) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["one", " \n", "two"], allow_partial=True))
    assert fake.texts == ["one", "two"]
    assert [error.row for error in answer.row_errors] == [1]
    assert array_of(answer.embeddings).any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_total_tokens_are_those_that_the_provider_bills(fake: FakeProvider, source: str) -> None:
    """total_tokens is the sum of the provider's figures; there are no counts of single texts."""
    async with remote(fake, source, ManualClock(), max_texts=2) as m:
        answer = await m.stub.Embed(pb.EmbedRequest(texts=["one", "one two", "one two three"]))
    assert (answer.total_tokens, answer.per_text_counts, len(fake.requests)) == (6, False, 2)
    assert not answer.token_counts
    assert not answer.truncated_rows


@pytest.mark.parametrize("source", [LIGHT, SMALL])
async def test_redirects_are_not_followed(fake: FakeProvider, source: str) -> None:
    """A redirect to another host is an invalid response, and no text is sent there."""
    with FakeProvider(key=KEY) as elsewhere:
        away = {"Location": f"{elsewhere.address}/v2/embed"}
        fake.always = Scripted(status=307, headers=away, body=b"")
        clock = ManualClock()
        async with remote(fake, source, clock) as m:
            told = await clock.run_until_done(failure(m.stub.Embed(pb.EmbedRequest(texts=["here"]))))
        assert (told.code, told.reason) == ("UNAVAILABLE", "PROVIDER_ANSWER")
        assert elsewhere.requests == []
