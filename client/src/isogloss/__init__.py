"""Multilingual embeddings over gRPC: texts of any language into one vector space.

from isogloss import Client

with Client("localhost:50051") as client:
    vectors = client.embed(["Good morning", "おはよう"]).vectors  # float32 [2, d]
    client.nearest("Where is the station?", candidates, k=3)  # [Neighbor(row, text, score), ...]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isogloss._version import __version__

if TYPE_CHECKING:
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
        KeyIgnoredWarning,
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
    "KeyIgnoredWarning",
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

# Imported when first used: a server needs only the contract and the wire, and must set gRPC's variables before gRPC is
# loaded.
_MODULES = {
    "isogloss.aio": ("AsyncClient",),
    "isogloss.client": ("Client",),
    "isogloss.enums": ("ElementType", "InputType", "Metric", "Priority", "ServingStatus", "Truncation"),
    "isogloss.errors": (
        "CallCancelledError",
        "DeadlineExceededError",
        "FailedPreconditionError",
        "FieldViolation",
        "InternalError",
        "InvalidArgumentError",
        "IsoglossError",
        "KeyIgnoredWarning",
        "NotFoundError",
        "PermissionDeniedError",
        "ResourceExhaustedError",
        "SpaceMismatchError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnimplementedError",
    ),
    "isogloss.options": ("ClientOptions",),
    "isogloss.results": (
        "EmbeddedChunk",
        "Embeddings",
        "HealthReport",
        "ModelHealth",
        "ModelInfo",
        "Neighbor",
        "Neighbors",
        "PairScores",
        "RowError",
        "Scores",
        "Timings",
        "Vectors",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
