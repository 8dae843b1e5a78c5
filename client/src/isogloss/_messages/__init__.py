"""Arguments -> requests, responses -> results. Nothing else of the client touches the generated messages."""

from isogloss._messages.requests import (
    embed_request,
    health_request,
    models_request,
    similarity_request,
    stream_request,
)
from isogloss._messages.responses import (
    NeighborLists,
    read_embed,
    read_health,
    read_models,
    read_nearest,
    read_scores,
    read_stream_answer,
)

__all__ = [
    "NeighborLists",
    "embed_request",
    "health_request",
    "models_request",
    "read_embed",
    "read_health",
    "read_models",
    "read_nearest",
    "read_scores",
    "read_stream_answer",
    "similarity_request",
    "stream_request",
]
