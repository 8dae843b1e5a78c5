"""Work that is refused before it begins: messages of millions of fields, vectors beyond the limits, long rankings."""

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.engine.pipeline import SimilarityResult, Timings
from isogloss_server.engine.similarity import Rankings
from isogloss_server.errors import MalformedRequestError, TooManyTextsError
from isogloss_server.rpc import codec
from isogloss_server.settings.declarations import HIGHEST_MAX_TEXTS

from tests.support.in_process import CARD, LIMITS, CountingEmbedder, ready_registry, serving

EMPTY_TEXT = b"\x0a\x00"
MANY = codec.MAX_FIELDS + 1


def nested(*numbers: int, size: int) -> bytes:
    """Returns the keys and sizes of fields, each inside the one before; the innermost has `size` bytes."""
    head = b""
    for number in reversed(numbers):
        head = bytes([number << 3 | 2]) + varint(size + len(head)) + head
    return head


def varint(number: int) -> bytes:
    """Returns the bytes of a number in a message."""
    head = bytearray()
    while number >= 0x80:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*head, number])


def unparsed(kind: type[Message]) -> Any:
    """Returns a class of messages whose parser fails the test."""

    class Unparsed:
        DESCRIPTOR = kind.DESCRIPTOR

        @classmethod
        def FromString(cls, _request: bytes) -> Message:  # noqa: N802 - protobuf's name
            raise AssertionError("the request was parsed")

    return Unparsed


@pytest.mark.parametrize(
    ("kind", "request_bytes"),
    [
        (pb.EmbedRequest, EMPTY_TEXT * MANY),
        (pb.EmbedRequest, b"\x0a\x01a" * MANY),
        (pb.EmbedRequest, b"\xf8\x07\x00" * MANY),
        (pb.EmbedRequest, b"\x7b\x7c" * MANY),
        (pb.EmbedStreamRequest, nested(2, size=2 * MANY) + EMPTY_TEXT * MANY),
        (pb.SimilarityRequest, b"\x0a\x00" * MANY),
        (pb.SimilarityRequest, nested(2, 1, size=2 * MANY) + EMPTY_TEXT * MANY),
        (pb.SimilarityRequest, nested(1, size=4 * MANY) + b"\x0a\x00\x12\x00" * MANY),
        (pb.SimilarityRequest, nested(1, 2, 1, size=5 * MANY) + b"\x2d\0\0\x80\x3f" * MANY),
        (pb.SimilarityRequest, nested(1, 1, size=1 << 60) + EMPTY_TEXT * MANY),
    ],
)
def test_messages_of_too_many_fields_are_refused_before_they_are_parsed(
    kind: type[Message], request_bytes: bytes
) -> None:
    """A request with more fields than any valid one is refused by a count of its fields, wherever they are."""
    with pytest.raises(TooManyTextsError):
        codec.parse(unparsed(kind).FromString, request_bytes)


@pytest.mark.parametrize("tail", [b"\x0a", b"\x0a\xff", b"\x78" + b"\x80" * 30, b"\xff" * 30, b"\x0f", b"\x2d\x00"])
def test_malformed_bytes_are_refused_by_the_parser(tail: bytes) -> None:
    """Bytes that end in the middle of a field, and numbers without an end, are MALFORMED_REQUEST."""
    text = pb.EmbedRequest(texts=["x" * codec.UNCHECKED_BYTES]).SerializeToString()
    with pytest.raises(MalformedRequestError):
        codec.parse(pb.EmbedRequest.FromString, text + tail)


def test_the_largest_valid_messages_are_parsed() -> None:
    """Messages with the highest number of texts, and with long texts and other fields, are parsed."""
    texts = ["text"] * HIGHEST_MAX_TEXTS
    for embed in (pb.EmbedRequest(texts=texts, model="m"), pb.EmbedRequest(texts=["x" * 100_000, "é" * 70_000])):
        assert codec.parse(pb.EmbedRequest.FromString, embed.SerializeToString()) == embed
    sides = pb.SimilarityRequest(
        queries=pb.Items(texts=pb.TextList(texts=texts)),
        candidates=pb.Items(
            vectors=pb.VectorList(vectors=pb.Matrix(data=bytes(70_000), rows=70_000, row_scales=[1.5] * 70_000))
        ),
        nearest=pb.Nearest(k=3, min_score=0.5),
    )
    assert codec.parse(pb.SimilarityRequest.FromString, sides.SerializeToString()) == sides


@pytest.mark.parametrize(
    ("space_id", "columns", "reason"),
    [(CARD.space_id, LIMITS.max_request_bytes, "REQUEST_TOO_LARGE"), ("other", 4, "SPACE_MISMATCH")],
)
async def test_vectors_beyond_the_limits_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, space_id: str, columns: int, reason: str
) -> None:
    """A side of vectors that is too large, or of another space, is refused from its size alone."""

    def fail(*_: Any) -> None:
        raise AssertionError("the vectors were decoded")

    monkeypatch.setattr(codec, "decode_numbers", fail)
    matrix = pb.Matrix(
        data=bytes(columns), rows=1, columns=columns, element_type=pb.ELEMENT_TYPE_INT8, row_scales=[1.0]
    )
    request = pb.SimilarityRequest(
        queries=pb.Items(vectors=pb.VectorList(vectors=matrix, space_id=space_id)), pairwise=pb.Pairwise()
    )
    async with serving(ready_registry(CountingEmbedder())) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Similarity(request)
    assert reason.encode() in dict(raised.value.trailing_metadata() or ())["grpc-status-details-bin"]


def test_rankings_longer_than_a_block_are_written_whole() -> None:
    """Lists of neighbors are converted in blocks, and have every row and score, in order."""
    counts = [0, 1, codec.BLOCK_NEIGHBORS, 2 * codec.BLOCK_NEIGHBORS + 1, 0, 3]
    rows = np.arange(sum(counts), dtype=np.int64)
    rankings = Rankings(rows, (rows / 2).astype(np.float32), np.array(counts))
    response = codec.to_similarity_response(
        SimilarityResult(
            compared=rankings,
            model="m",
            space_id="s",
            truncated_queries=(),
            truncated_candidates=(),
            total_tokens=0,
            timings=Timings(total_s=0, tokenization_s=0, queue_s=0, inference_s=0, cached_rows=0),
        )
    )
    ends = np.cumsum(counts)
    for end, count, neighbors in zip(ends, counts, response.nearest.queries, strict=True):
        assert list(neighbors.rows) == list(range(end - count, end))
        assert list(neighbors.scores) == [row / 2 for row in range(end - count, end)]
