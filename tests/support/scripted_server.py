"""A real gRPC server in this process whose answers a test scripts: limits, faults in order, spaces; it keeps a record.

Vectors are small whole numbers made of the text alone, so that sums are exact, split or not.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc as pb_grpc

from tests.support.scripted_faults import Fault, refusal
from tests.support.scripted_stream import Manner, answered, in_order

DIMENSIONS = 16
SPACE = "space-1"
LIMITS = ("max_texts", "max_request_bytes", "max_response_bytes", "max_pairs")


@dataclass
class Record:
    """One call as it arrived."""

    method: str
    request: Any
    metadata: dict[str, Any]
    time_remaining: float


@dataclass
class Script:
    """What the server answers, and what it has been asked."""

    limits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIMITS, 0))  # 0 = none
    faults: list[Fault] = field(default_factory=list)  # of the next calls of Embed and Similarity, in order
    bad_texts: set[str] = field(default_factory=set)
    on_embed: Callable[[Any], None] = lambda context: None
    spaces: list[str] = field(default_factory=list)  # of the next Embeds; then SPACE
    streams: list[Manner] = field(default_factory=list)  # of the next EmbedStreams; then in order
    calls: list[Record] = field(default_factory=list)

    def methods(self) -> list[str]:
        """The names of the calls, in order."""
        return [call.method for call in self.calls]

    def requests(self, method: str) -> list[Any]:
        """The requests of one method, in order."""
        return [call.request for call in self.calls if call.method == method]


def vector(text: str) -> np.ndarray:
    """Whole numbers from -2 to 2, float32 [DIMENSIONS], from the text alone."""
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest()[:DIMENSIONS], np.uint8)
    return (digest % 5).astype(np.float32) - 2


def score(queries: np.ndarray, candidates: np.ndarray, metric: int) -> np.ndarray:
    """Scores float32 [q, c]; exact for small whole numbers, and so independent of the block they are computed in."""
    one, other = queries.astype(np.float64)[:, None, :], candidates.astype(np.float64)[None, :, :]
    dots = (one * other).sum(axis=2)
    if metric == pb.METRIC_DOT:
        return dots.astype(np.float32)
    if metric == pb.METRIC_EUCLIDEAN:
        return -np.sqrt(((one - other) ** 2).sum(axis=2)).astype(np.float32)
    norms = np.sqrt((one**2).sum(axis=2) * (other**2).sum(axis=2))
    return (dots / np.where(norms > 0, norms, 1)).astype(np.float32)


class Servicer(pb_grpc.EmbeddingServiceServicer):
    """Answers as the script says."""

    def __init__(self, script: Script) -> None:
        self.script, self.lock = script, threading.Lock()

    def Embed(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Vectors of the texts."""
        self._arrive("Embed", request, context)
        self.script.on_embed(context)
        if not request.texts:
            refusal("EMPTY_TEXTS", "texts").abort(context)
        self._refuse(context, "max_texts", len(request.texts), "TOO_MANY_TEXTS")
        self._refuse(context, "max_request_bytes", _utf8(request.texts), "REQUEST_TOO_LARGE")
        columns = request.dimensions or DIMENSIONS
        self._refuse(context, "max_response_bytes", len(request.texts) * 4 * columns, "RESPONSE_TOO_LARGE")
        bad = [row for row, text in enumerate(request.texts) if text in self.script.bad_texts]
        if bad and not request.allow_partial:
            refusal("EMPTY_TEXT", *(f"texts[{row}]" for row in bad), index=str(bad[0])).abort(context)
        with self.lock:
            space = self.script.spaces.pop(0) if self.script.spaces else SPACE
        if request.space_id not in ("", space) and request.space_id != "any":
            refusal("SPACE_MISMATCH", "space_id", code=grpc.StatusCode.FAILED_PRECONDITION).abort(context)
        rows = np.array([vector(text)[:columns] for text in request.texts], "<f4")
        rows[bad] = 0
        return pb.EmbedResponse(
            embeddings=_matrix(rows),
            model=request.model or "default",
            space_id=space,
            token_counts=[len(text) for text in request.texts],
            per_text_counts=True,
            truncated_rows=_long(request.texts),
            row_errors=[pb.RowError(row=row, status=_row_status()) for row in bad],
            timings=pb.Timings(total=duration_pb2.Duration(nanos=500_000_000), cached_rows=1),
            total_tokens=sum(map(len, request.texts)),
        )

    def EmbedStream(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        """Each request as Embed would answer it, recorded as an Embed."""
        self._arrive("EmbedStream", None, context, faulty=False)
        with self.lock:
            manner = self.script.streams.pop(0) if self.script.streams else in_order
        return manner(request_iterator, answered(self.Embed, context), context)

    def Similarity(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Scores of the sides."""
        self._arrive("Similarity", request, context)
        present = [request.queries, request.candidates][: 1 + request.HasField("candidates")]
        for items in present:
            self._refuse(context, "max_texts", len(items.texts.texts), "TOO_MANY_TEXTS")
        size = sum(_utf8(items.texts.texts) + len(items.vectors.vectors.data) for items in present)
        self._refuse(context, "max_request_bytes", size, "REQUEST_TOO_LARGE")
        scores = score(_rows(present[0]), _rows(present[-1]), request.metric)
        pairs = len(scores) if request.WhichOneof("shape") == "pairwise" else scores.size
        self._refuse(context, "max_pairs", pairs, "RESPONSE_TOO_LARGE")
        response = pb.SimilarityResponse(
            model=request.model or "default",
            space_id=SPACE,
            truncated_queries=_long(request.queries.texts.texts),
            truncated_candidates=_long(request.candidates.texts.texts),
            timings=pb.Timings(total=duration_pb2.Duration(nanos=500_000_000)),
        )
        if request.WhichOneof("shape") == "nearest":
            response.nearest.queries.extend(_nearest(row, request.nearest) for row in scores)
            size = 8 * sum(len(found.rows) for found in response.nearest.queries)
            self._refuse(context, "max_response_bytes", size, "RESPONSE_TOO_LARGE")
            return response
        scores = np.diagonal(scores)[None, :] if request.WhichOneof("shape") == "pairwise" else scores
        self._refuse(context, "max_response_bytes", 4 * scores.size, "RESPONSE_TOO_LARGE")
        response.scores.CopyFrom(_matrix(scores))
        return response

    def Health(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Serving, or what a newer server might say."""
        self._arrive("Health", request, context)
        status = 99 if request.model == "newer" else pb.SERVING_STATUS_DEGRADED
        model = pb.ModelHealth(model="default", status=status, detail="slow", embedded_texts=7)
        return pb.HealthResponse(status=status, version="9.9", uptime=duration_pb2.Duration(seconds=3), models=[model])

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One model, with the script's limits."""
        self._arrive("ListModels", request, context, faulty=False)
        shape = {"dimensions": [DIMENSIONS, 8], "truncations": [pb.TRUNCATION_END, 99], "languages": ["en"]}
        model = pb.ModelInfo(name="default", space_id=SPACE, **shape, **self.script.limits)
        return pb.ListModelsResponse(models=[model])

    def _arrive(self, method: str, request: Any, context: Any, *, faulty: bool = True) -> None:
        with self.lock:
            metadata = dict(context.invocation_metadata())
            self.script.calls.append(Record(method, request, metadata, context.time_remaining()))
            fault = self.script.faults.pop(0) if faulty and self.script.faults else None
        if fault is not None:
            fault.abort(context)

    def _refuse(self, context: Any, name: str, actual: int, reason: str) -> None:
        limit = self.script.limits[name]
        if limit and actual > limit:
            refusal(reason, "texts", limit=str(limit), actual=str(actual)).abort(context)


@dataclass
class Running:
    """A server under way."""

    script: Script
    address: str


@contextlib.contextmanager
def running(credentials: grpc.ServerCredentials | None = None) -> Iterator[Running]:
    """Runs a server on a free port of this machine."""
    script = Script()
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
        pb_grpc.add_EmbeddingServiceServicer_to_server(Servicer(script), server)
        free = "localhost:0"  # the name in a certificate
        port = server.add_secure_port(free, credentials) if credentials else server.add_insecure_port(free)
        server.start()
        try:
            yield Running(script, f"localhost:{port}")
        finally:
            server.stop(None).wait()


def _long(texts: Sequence[str]) -> list[int]:
    return [row for row, text in enumerate(texts) if len(text) > 20]


def _utf8(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _matrix(rows: np.ndarray) -> Any:
    # Without an element type, which the contract reads as FLOAT32.
    return pb.Matrix(data=rows.astype("<f4").tobytes(), rows=rows.shape[0], columns=rows.shape[1])


def _rows(items: Any) -> np.ndarray:
    if items.WhichOneof("kind") == "vectors":
        matrix = items.vectors.vectors
        return np.frombuffer(matrix.data, "<f4").reshape(matrix.rows, matrix.columns)
    return np.array([vector(text) for text in items.texts.texts], np.float32)


def _nearest(scores: np.ndarray, shape: Any) -> Any:
    least = np.float32(shape.min_score) if shape.HasField("min_score") else -np.inf
    best = [row for row in np.lexsort((np.arange(len(scores)), -scores)) if scores[row] >= least][: shape.k]
    return pb.NeighborList(rows=best, scores=[scores[row] for row in best])


def _row_status() -> Any:
    status = status_pb2.Status(code=3, message="empty")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="EMPTY_TEXT", domain="isogloss"))
    return status
