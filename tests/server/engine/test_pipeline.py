"""One job's story: partial answers, lanes, truncation."""

import asyncio
from typing import Any

import numpy as np
import pytest
from isogloss.wire.enums import InputType, Priority, Truncation
from isogloss_server.clock import SystemClock
from isogloss_server.engine.executor import Executor
from isogloss_server.engine.pipeline import Pipeline
from isogloss_server.engine.request import EmbedRequest, SimilarityRequest, TextSide, VectorSide
from isogloss_server.errors import EmptyTextError, TextWithoutTokensError, UnsupportedTruncationError
from isogloss_server.models.interfaces import Urgency

from tests.support.cutting import Cutting
from tests.support.in_process import CARD, CountingEmbedder, ready_registry


def pipeline(embedder: CountingEmbedder) -> Pipeline:
    return Pipeline(ready_registry(embedder), Executor(1), SystemClock())


async def test_partial_blames_single_texts_and_embeds_the_others() -> None:
    """With allow_partial a text at fault is a row of zeros with its error; the others get what they get alone."""
    job = EmbedRequest(texts=["", "ab", "!!!", " ", "abc"], allow_partial=True, normalize=False)
    result = await pipeline(CountingEmbedder()).embed(job)
    expected = [[0] * 4, [2, 1, 1, 1], [0] * 4, [0] * 4, [3, 1, 1, 1]]
    np.testing.assert_array_equal(result.matrix.array, expected)
    assert {row: fault.reason for row, fault in result.embedded.row_errors.items()} == {
        0: "EMPTY_TEXT", 2: "TEXT_WITHOUT_TOKENS", 3: "EMPTY_TEXT"
    }  # fmt: skip
    assert result.embedded.token_counts is not None
    assert result.embedded.token_counts.tolist() == [0, 2, 0, 0, 3]


@pytest.mark.parametrize("texts", [["", " "], ["!!!", ""], ["!!!"]])
async def test_partial_with_no_good_text_is_zeros(texts: list[str]) -> None:
    """Where every text is at fault every row is zeros, and each is told."""
    result = await pipeline(CountingEmbedder()).embed(EmbedRequest(texts=texts, allow_partial=True, dimensions=2))
    np.testing.assert_array_equal(result.matrix.array, np.zeros((len(texts), 2)))
    assert sorted(result.embedded.row_errors) == list(range(len(texts)))


async def test_without_partial_the_whole_job_fails_before_inference() -> None:
    """An empty text fails the job before the embedder is asked; a text without tokens fails it too."""
    embedder = CountingEmbedder()
    with pytest.raises(EmptyTextError):
        await pipeline(embedder).embed(EmbedRequest(texts=["a", " "]))
    assert embedder.calls == []
    with pytest.raises(TextWithoutTokensError) as raised:
        await pipeline(embedder).embed(EmbedRequest(texts=["a", "!!!", "b", "!!!"]))
    assert [violation.field for violation in raised.value.violations] == ["texts[1]", "texts[3]"]


async def test_bulk_jobs_work_one_at_a_time_and_hold_nobody() -> None:
    """However many BULK jobs wait, one works, and an INTERACTIVE job goes past them all."""
    began, go_on = asyncio.Event(), asyncio.Event()

    class Slow(CountingEmbedder):
        async def embed(self, texts: Any, *arguments: Any, **options: Any) -> Any:
            if texts == ["bulk"]:
                began.set()
                await go_on.wait()
            return await super().embed(texts, *arguments, **options)

    embedder = Slow()
    registry = ready_registry(embedder)
    line = Pipeline(registry, Executor(1), SystemClock())
    bulk = [asyncio.ensure_future(line.embed(EmbedRequest(texts=["bulk"], priority=Priority.BULK))) for _ in range(5)]
    await began.wait()
    interactive = await line.embed(EmbedRequest(texts=["now"]))
    assert interactive.matrix.array.shape == (1, 4)
    assert embedder.calls == [["now"]]
    assert registry.get("test").queued_texts == 5
    bulk[1].cancel()
    go_on.set()
    done = await asyncio.gather(*bulk, return_exceptions=True)
    assert [type(result).__name__ for result in done].count("EmbedResult") == 4
    assert registry.get("test").queued_texts == 0
    assert registry.get("test").embedded_texts == 5


async def test_a_model_with_a_queue_works_on_many_bulk_jobs() -> None:
    """So many BULK jobs work at once as the model says, each with its urgency; one more waits for one to end."""
    go_on = asyncio.Event()
    at_work: list[Urgency] = []

    class Held(CountingEmbedder):
        async def embed(
            self, texts: Any, input_type: InputType, truncation: Truncation, urgency: Urgency, **options: Any
        ) -> Any:
            at_work.append(urgency)
            await go_on.wait()
            return await super().embed(texts, input_type, truncation, urgency)

    registry = ready_registry(Held(), bulk_slots=3)
    line = Pipeline(registry, Executor(1), SystemClock())
    jobs = [EmbedRequest(texts=["a"], priority=Priority.BULK, deadline_s=1e9 + n) for n in range(4)]
    bulk = [asyncio.ensure_future(line.embed(job)) for job in jobs]
    for _ in range(10):
        await asyncio.sleep(0)
    assert at_work == [Urgency(Priority.BULK, 1e9 + n) for n in range(3)]
    go_on.set()
    await asyncio.gather(*bulk)
    assert len(at_work) == 4


@pytest.mark.parametrize("truncation", [Truncation.START, Truncation.END])
async def test_a_truncation_that_the_model_does_not_offer_is_refused(truncation: Truncation) -> None:
    """Some providers cannot cut at every end; what they do not offer is refused with what they do, END as well."""
    embedder = Cutting(Truncation.ERROR)
    side = TextSide("queries", ["a"], InputType.QUERY)
    for refused in (
        pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=truncation)),
        pipeline(embedder).similarity(SimilarityRequest(queries=side, candidates=None, truncation=truncation)),
    ):
        with pytest.raises(UnsupportedTruncationError) as raised:
            await refused
        assert raised.value.figures == {"actual": truncation.value, "offered": "error"}
    assert embedder.asked == []


@pytest.mark.parametrize(
    ("offered", "said", "done"),
    [
        (tuple(Truncation), None, Truncation.END),
        ((Truncation.ERROR, Truncation.END), None, Truncation.END),
        ((Truncation.ERROR,), None, Truncation.ERROR),
        ((Truncation.START, Truncation.ERROR), None, Truncation.ERROR),
        (tuple(Truncation), Truncation.START, Truncation.START),
        (tuple(Truncation), Truncation.ERROR, Truncation.ERROR),
    ],
)
async def test_a_truncation_left_unsaid_is_end_where_the_model_offers_it(
    offered: tuple[Truncation, ...], said: Truncation | None, done: Truncation
) -> None:
    """Nothing said is END, or ERROR by a model without END, in embeddings and comparisons; what is said is done."""
    embedder = Cutting(*offered)
    side = TextSide("queries", ["a"], InputType.QUERY)
    await pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=said))
    await pipeline(embedder).embed(EmbedRequest(texts=["a"], truncation=said, allow_partial=True))
    await pipeline(embedder).similarity(SimilarityRequest(queries=side, candidates=side, truncation=said))
    assert embedder.asked == [done] * 4


async def test_a_comparison_of_vectors_leaves_the_queue_as_it_was() -> None:
    """Of vectors alone nothing is learnt, and whatever was asked, nothing stays in the queue."""
    registry = ready_registry(CountingEmbedder())
    model = registry.get("test")
    side = VectorSide("queries.vectors", np.ones((3, 4), np.float32), CARD.space_id, 48)
    texts = TextSide("candidates.texts.texts", ["one", "two"], InputType.QUERY)
    pipeline = Pipeline(registry, Executor(1), SystemClock())
    for candidates in (None, texts):
        result = await pipeline.similarity(SimilarityRequest(queries=side, candidates=candidates))
        assert len(result.compared) == 3
        assert (model.queued_texts, model.ready.admission.tokens) == (0, 0)
