"""What the numbers of Truncation ask of a model, by what it offers."""

from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import Truncation

from tests.support.cutting import Cutting
from tests.support.in_process import ready_registry, serving
from tests.support.wire import texts

EVERY = tuple(Truncation)


@pytest.mark.parametrize(
    ("offered", "number", "done"),
    [
        (EVERY, pb.TRUNCATION_UNSPECIFIED, Truncation.END),
        (EVERY, pb.TRUNCATION_END, Truncation.END),
        (EVERY, pb.TRUNCATION_START, Truncation.START),
        (EVERY, pb.TRUNCATION_ERROR, Truncation.ERROR),
        ((Truncation.ERROR,), pb.TRUNCATION_UNSPECIFIED, Truncation.ERROR),
        ((Truncation.ERROR,), pb.TRUNCATION_ERROR, Truncation.ERROR),
    ],
)
async def test_a_number_is_done_as_the_contract_says(
    offered: tuple[Truncation, ...], number: Any, done: Truncation
) -> None:
    """Unsaid is END, or ERROR by a model that does not offer END; every other number is itself."""
    embedder = Cutting(*offered)
    async with serving(ready_registry(embedder)) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["a"], truncation=number))
        await stub.Similarity(pb.SimilarityRequest(queries=texts("a"), truncation=number))
    assert embedder.asked == [done] * 2


@pytest.mark.parametrize("number", [pb.TRUNCATION_END, pb.TRUNCATION_START])
async def test_what_the_model_does_not_offer_is_refused(number: Any) -> None:
    """END asked for is not END left unsaid: a model that cannot cut refuses it; ListModels says what it can."""
    embedder = Cutting(Truncation.ERROR)
    async with serving(ready_registry(embedder)) as stub:
        for call in (
            stub.Embed(pb.EmbedRequest(texts=["a"], truncation=number)),
            stub.Similarity(pb.SimilarityRequest(queries=texts("a"), truncation=number)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert b"UNSUPPORTED_TRUNCATION" in dict(raised.value.trailing_metadata())["grpc-status-details-bin"]
        models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert models[0].truncations == [pb.TRUNCATION_ERROR]
    assert embedder.asked == []
