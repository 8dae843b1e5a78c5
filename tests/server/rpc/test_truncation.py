"""The values of Truncation over gRPC, for models that offer all or some of them."""

from typing import Any

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import Truncation

from tests.support.in_process import TruncationRecorder, ready_registry, serving
from tests.support.wire import texts

ALL = tuple(Truncation)


@pytest.mark.parametrize(
    ("offered", "number", "expected"),
    [
        (ALL, pb.TRUNCATION_UNSPECIFIED, Truncation.END),
        (ALL, pb.TRUNCATION_END, Truncation.END),
        (ALL, pb.TRUNCATION_START, Truncation.START),
        (ALL, pb.TRUNCATION_ERROR, Truncation.ERROR),
        ((Truncation.ERROR,), pb.TRUNCATION_UNSPECIFIED, Truncation.ERROR),
        ((Truncation.ERROR,), pb.TRUNCATION_ERROR, Truncation.ERROR),
    ],
)
async def test_the_model_receives_the_requested_or_default_truncation(
    offered: tuple[Truncation, ...], number: Any, expected: Truncation
) -> None:
    """UNSPECIFIED is END, or ERROR for a model without END; every other value is passed on."""
    embedder = TruncationRecorder(*offered)
    async with serving(ready_registry(embedder)) as stub:
        await stub.Embed(pb.EmbedRequest(texts=["a"], truncation=number))
        await stub.Similarity(pb.SimilarityRequest(queries=texts("a"), truncation=number))
    assert embedder.truncations == [expected] * 2


@pytest.mark.parametrize("number", [pb.TRUNCATION_END, pb.TRUNCATION_START])
async def test_an_unsupported_truncation_is_rejected(number: Any) -> None:
    """A request for an unsupported truncation, also END, is rejected; ListModels has the supported ones."""
    embedder = TruncationRecorder(Truncation.ERROR)
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
    assert embedder.truncations == []
