"""Converts protobuf messages to engine requests, and results to protobuf messages."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from google.protobuf import duration_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import (
    UNSPECIFIED,
    ContractEnum,
    ElementType,
    InputType,
    Metric,
    Priority,
    ServingStatus,
    Truncation,
)
from isogloss.wire.matrix import MatrixError, decode_numbers, encode, quantize
from isogloss.wire.sizes import embed_response_bytes, matrix_bytes

from isogloss_server.engine.monitoring import State
from isogloss_server.engine.pipeline import EmbedResult, SimilarityResult, Timings
from isogloss_server.engine.registry import ReadyModel, Registry, ServedModel
from isogloss_server.engine.request import (
    AllPairs,
    EmbedRequest,
    Nearest,
    Pairwise,
    SimilarityRequest,
    TextSide,
    VectorSide,
    space_mismatch_error,
)
from isogloss_server.engine.similarity import Rankings
from isogloss_server.errors import (
    BadMatrixError,
    MalformedRequestError,
    MissingFieldError,
    TooManyTextsError,
    UnknownEnumError,
)
from isogloss_server.models.interfaces import Rows
from isogloss_server.rpc.status import to_row_status
from isogloss_server.settings.declarations import HIGHEST_MAX_TEXTS

UNCHECKED_BYTES = 64 * 1024  # a smaller request has too few fields to take long
MAX_FIELDS = HIGHEST_MAX_TEXTS + 1000
VARINT, LENGTH_DELIMITED = 0, 2  # kinds of fields: https://protobuf.dev/programming-guides/encoding/#structure
FIXED_BYTES = {1: 8, 5: 4}
MORE, MAX_VARINT_BITS = 0x80, 70  # a byte from MORE on continues a number, which has ten bytes at most
END_OF_REQUEST = bytes(16)
BLOCK_NEIGHBORS = 1 << 13  # converted at a time, in less than a millisecond

T = TypeVar("T")
Submessages: TypeAlias = "Mapping[int, Submessages]"
E = TypeVar("E", bound=ContractEnum)
D = TypeVar("D", bound=ContractEnum | None)


def read_enum(kind: type[E], number: int, path: str, *, default: D) -> E | D:
    """Returns the member with `number`, or `default` if the number is UNSPECIFIED.

    Raises:
        UnknownEnumError: no member has this number.
    """
    if number == UNSPECIFIED:
        return default
    member = kind.by_number.get(number)
    if member is None:
        known = ", ".join(map(str, (UNSPECIFIED, *(member.number for member in kind))))
        raise UnknownEnumError(f"unknown number {number}; known: {known}", field=path, actual=number, known=known)
    return member


def parse(read: Callable[[bytes], T], request: bytes) -> T:
    """Returns the message in `request`. Parsed here, because grpc.aio would return UNKNOWN for malformed bytes.

    Args:
        read: `FromString` of the message's class.
        request: The bytes.

    Raises:
        MalformedRequestError: the bytes are not a message of the contract.
        TooManyTextsError: they have more fields than any valid request.
    """
    if len(request) > UNCHECKED_BYTES:
        descriptor: Descriptor = read.__self__.DESCRIPTOR  # type: ignore[attr-defined]  # of the class
        _check_fields(request, _submessages(descriptor))
    try:
        return read(request)
    except DecodeError:
        raise MalformedRequestError("the bytes of the request are not a message of the contract") from None


def _check_fields(request: bytes, submessages: Submessages) -> None:
    """Raises TooManyTextsError if a message has more than MAX_FIELDS fields, nested ones included.

    protobuf parses without releasing the interpreter, in a time that grows with the fields: 4 million empty texts in 8
    MiB take half a second. Malformed bytes end the count, and are refused by the parser.
    """
    pending, fields = [(0, len(request), submessages)], 0
    request += END_OF_REQUEST  # so that the last field of malformed bytes can be read as if it was whole
    while pending:
        at, end, submessages = pending.pop()
        while at < end:
            fields += 1
            if fields > MAX_FIELDS:
                message = f"more than {MAX_FIELDS} texts and other fields; no request may have so many"
                raise TooManyTextsError(message, limit=HIGHEST_MAX_TEXTS)
            key, at = request[at], at + 1
            if key >= MORE:
                key, at = _varint(request, at - 1)
            kind = key & 7
            if kind == LENGTH_DELIMITED:
                size, at = request[at], at + 1
                if size >= MORE:
                    size, at = _varint(request, at - 1)
                submessage = submessages.get(key >> 3)
                if submessage is not None:
                    pending.append((at, min(at + size, end), submessage))
                at += size
            elif kind == VARINT:
                _, at = _varint(request, at)
            else:
                at += FIXED_BYTES.get(kind, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns the number at a position, and the position after it; 0 and END_OF_REQUEST if the bytes are malformed."""
    number, shift = 0, 0
    while shift < MAX_VARINT_BITS:
        byte, at = data[at], at + 1
        number |= (byte & (MORE - 1)) << shift
        if byte < MORE:
            return number, at
        shift += 7
    return 0, len(data) - len(END_OF_REQUEST)


@functools.cache
def _submessages(descriptor: Descriptor) -> Submessages:
    """Returns the nested messages of a message by the numbers of their fields."""
    nested = [(field.number, field.message_type) for field in descriptor.fields if field.message_type is not None]
    return {number: _submessages(kind) for number, kind in nested}


def from_matrix(message: pb.Matrix, path: str) -> Rows:
    """Returns the vectors of a Matrix as float32 [n, d]; `path` is its field in the request.

    Raises:
        BadMatrixError: the message is not a valid matrix of finite numbers.
        UnknownEnumError: the element type is unknown.
    """
    element_type = _element_type(message.element_type, f"{path}.element_type")
    try:
        return decode_numbers(message, element_type)
    except MatrixError as error:
        raise BadMatrixError(str(error), field=f"{path}.{error.part}") from None


def to_embed_request(
    request: pb.EmbedRequest, deadline_s: float, caller: str = "", *, from_stream: bool
) -> EmbedRequest:
    """Returns the engine request of an Embed or of a stream's message; raises UnknownEnumError."""
    return EmbedRequest(
        texts=_texts(request.texts),
        model=request.model,
        input_type=_input_type(request.input_type, "input_type"),
        dimensions=request.dimensions,
        element_type=_element_type(request.element_type, "element_type"),
        truncation=read_enum(Truncation, request.truncation, "truncation", default=None),
        normalize=request.normalize if request.HasField("normalize") else True,
        priority=read_enum(Priority, request.priority, "priority", default=Priority.INTERACTIVE),
        allow_partial=request.allow_partial,
        space_id=request.space_id,
        deadline_s=deadline_s,
        from_stream=from_stream,
        caller=caller,
    )


def max_response_bytes(request: pb.EmbedRequest, model: ReadyModel) -> int:
    """Returns the maximum size of the response to an Embed that has no row errors, at most the model's limit."""
    columns = request.dimensions or model.embedder.card.dimensions[0]
    size = embed_response_bytes(len(request.texts), columns, ElementType.FLOAT32, allow_partial=False)
    return min(size, model.limits.max_response_bytes)


def to_embed_response(result: EmbedResult) -> pb.EmbedResponse:
    """Returns the response to an Embed."""
    embedded = result.embedded
    counts = embedded.token_counts
    response = pb.EmbedResponse(
        model=result.model,
        space_id=result.space_id,
        token_counts=None if counts is None else counts.tolist(),
        truncated_rows=embedded.truncated_rows,
        row_errors=[pb.RowError(row=row, status=to_row_status(error)) for row, error in embedded.row_errors.items()],
        total_tokens=embedded.total_tokens,
        per_text_counts=counts is not None,
    )
    _write_timings(result.timings, response.timings)
    encode(result.matrix, response.embeddings)
    return response


def check_similarity_size(request: pb.SimilarityRequest, model: ReadyModel) -> int:
    """Returns the bytes of the vectors of a Similarity, before they are decoded.

    Raises:
        RequestTooLargeError: the vectors exceed the limit of the model; the engine checks the texts too.
        SpaceMismatchError: vectors belong to another space.
    """
    card, vector_bytes = model.embedder.card, 0
    for path, items in (("queries", request.queries), ("candidates", request.candidates)):
        if items.WhichOneof("kind") == "vectors":
            if items.vectors.space_id != card.space_id:
                raise space_mismatch_error(items.vectors.space_id, card, f"{path}.vectors.space_id")
            vector_bytes += matrix_bytes(items.vectors.vectors)
            model.limits.check_request_bytes(vector_bytes, f"{path}.vectors")
    return vector_bytes


def to_similarity_request(request: pb.SimilarityRequest, deadline_s: float, caller: str = "") -> SimilarityRequest:
    """Returns the engine request of a Similarity.

    Raises:
        BadMatrixError: vectors are invalid.
        MissingFieldError: a side has neither texts nor vectors.
        UnknownEnumError: an enum has an unknown number.
    """
    return SimilarityRequest(
        queries=_side(request.queries, "queries"),
        candidates=_side(request.candidates, "candidates") if request.HasField("candidates") else None,
        model=request.model,
        metric=read_enum(Metric, request.metric, "metric", default=Metric.COSINE),
        dimensions=request.dimensions,
        truncation=read_enum(Truncation, request.truncation, "truncation", default=None),
        priority=read_enum(Priority, request.priority, "priority", default=Priority.INTERACTIVE),
        shape=_shape(request),
        deadline_s=deadline_s,
        caller=caller,
    )


def to_similarity_response(result: SimilarityResult) -> pb.SimilarityResponse:
    """Returns the response to a Similarity."""
    response = pb.SimilarityResponse(
        model=result.model,
        space_id=result.space_id,
        truncated_queries=result.truncated_queries,
        truncated_candidates=result.truncated_candidates,
    )
    _write_timings(result.timings, response.timings)
    if isinstance(result.compared, Rankings):
        _write_rankings(result.compared, response.nearest)
    else:
        encode(quantize(result.compared, ElementType.FLOAT32), response.scores)
    return response


def to_health_response(
    registry: Registry, models: Iterable[ServedModel], *, version: str, uptime_s: float
) -> pb.HealthResponse:
    """Returns the health of `models`; the status of the server is that of the worst model."""
    models = list(models)
    response = pb.HealthResponse(
        status=_status_number(max(registry.state(model) for model in models)),
        version=version,
        models=[
            pb.ModelHealth(
                model=model.name,
                status=_status_number(registry.state(model)),
                detail="the server is draining" if registry.draining else model.health.detail,
                queued_texts=model.queued_texts,
                embedded_texts=model.embedded_texts,
            )
            for model in models
        ],
    )
    _write_seconds(uptime_s, response.uptime)
    return response


def to_model_info(model: ServedModel, texts_per_minute: int = 0) -> pb.ModelInfo:
    """Returns the description of a model, to a caller with this quota; raises ModelNotReadyError until it is loaded."""
    card, limits = model.ready.embedder.card, model.ready.limits
    return pb.ModelInfo(
        name=model.name,
        space_id=card.space_id,
        backend=card.backend,
        revision=card.revision,
        dimensions=card.dimensions,
        max_tokens=card.max_tokens,
        max_texts=min(limits.max_texts, texts_per_minute or limits.max_texts),
        max_request_bytes=limits.max_request_bytes,
        max_response_bytes=limits.max_response_bytes,
        max_pairs=limits.max_pairs,
        languages=card.languages,
        has_roles=card.has_roles,
        truncations=[truncation.number for truncation in card.truncations],
        license=card.license,
    )


def _write_rankings(rankings: Rankings, to: pb.NeighborLists) -> None:
    """Fills the lists in blocks, between which other threads run: a conversion of numpy or protobuf holds them up."""
    end = 0
    for count in rankings.counts.tolist():
        start, end = end, end + count
        neighbors = to.queries.add()
        for first in range(start, end, BLOCK_NEIGHBORS):
            block = slice(first, min(first + BLOCK_NEIGHBORS, end))
            neighbors.rows.extend(rankings.rows[block].tolist())
            neighbors.scores.extend(rankings.scores[block].tolist())


def _side(items: pb.Items, path: str) -> TextSide | VectorSide:
    kind = items.WhichOneof("kind")
    if kind == "texts":
        input_type = _input_type(items.texts.input_type, f"{path}.texts.input_type")
        return TextSide(f"{path}.texts.texts", _texts(items.texts.texts), input_type)
    if kind == "vectors":
        vectors_path, matrix = f"{path}.vectors", items.vectors.vectors
        rows = from_matrix(matrix, f"{vectors_path}.vectors")
        return VectorSide(vectors_path, rows, items.vectors.space_id, matrix_bytes(matrix))
    raise MissingFieldError("texts or vectors are required", field=path)


def _input_type(number: int, path: str) -> InputType:
    return read_enum(InputType, number, path, default=InputType.SIMILARITY)


def _element_type(number: int, path: str) -> ElementType:
    return read_enum(ElementType, number, path, default=ElementType.FLOAT32)


def _status_number(state: State) -> Any:
    return ServingStatus[state.name].number


def _texts(texts: Sequence[str]) -> Sequence[str]:
    """Returns the texts of a message; they are not copied if their number exceeds every possible limit."""
    return list(texts) if len(texts) <= HIGHEST_MAX_TEXTS else texts


def _shape(request: pb.SimilarityRequest) -> AllPairs | Pairwise | Nearest:
    kind = request.WhichOneof("shape")
    if kind == "nearest":
        nearest = request.nearest
        return Nearest(nearest.k, nearest.min_score if nearest.HasField("min_score") else None)
    return Pairwise() if kind == "pairwise" else AllPairs()


def _write_timings(timings: Timings, to: pb.Timings) -> None:
    _write_seconds(timings.total_s, to.total)
    _write_seconds(timings.tokenization_s, to.tokenization)
    _write_seconds(timings.queue_s, to.queue)
    _write_seconds(timings.inference_s, to.inference)
    to.cached_rows = timings.cached_rows


def _write_seconds(seconds: float, to: duration_pb2.Duration) -> None:
    to.seconds, to.nanos = divmod(max(0, int(seconds * 1e9)), 1_000_000_000)
