"""Multilingual embeddings over gRPC: texts of any language into one vector space.

from isogloss import Client

with Client("localhost:50051") as client:
    vectors = client.embed(["Good morning", "おはよう"]).vectors  # float32 [2, d]
    client.nearest("Where is the station?", candidates, k=3)  # [Neighbor(row, text, score), ...]
"""

from isogloss._version import __version__
from isogloss.aio import AsyncClient
from isogloss.client import Client
from isogloss.enums import ElementType, InputType, Metric, Priority, ServingStatus, Truncation
from isogloss.errors import (
    CallCancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    IsoglossError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SpaceMismatchError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from isogloss.options import ClientOptions
from isogloss.results import (
    EmbeddedChunk,
    Embeddings,
    HealthReport,
    ModelHealth,
    ModelInfo,
    Neighbor,
    Neighbors,
    PairScores,
    RowError,
    Scores,
    Timings,
    Vectors,
)

__all__ = [
    "AsyncClient",
    "CallCancelledError",
    "Client",
    "ClientOptions",
    "DeadlineExceededError",
    "ElementType",
    "EmbeddedChunk",
    "Embeddings",
    "FailedPreconditionError",
    "FieldViolation",
    "HealthReport",
    "InputType",
    "InternalError",
    "InvalidArgumentError",
    "IsoglossError",
    "Metric",
    "ModelHealth",
    "ModelInfo",
    "Neighbor",
    "Neighbors",
    "NotFoundError",
    "PairScores",
    "PermissionDeniedError",
    "Priority",
    "ResourceExhaustedError",
    "RowError",
    "Scores",
    "ServingStatus",
    "SpaceMismatchError",
    "Timings",
    "Truncation",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Vectors",
    "__version__",
]
