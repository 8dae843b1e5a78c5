"""What a server says about itself."""

from dataclasses import dataclass

from isogloss.enums import ServingStatus, Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that the server offers, and the limits of one request to it. The client keeps them by itself.

    Attributes:
        name: What to give as `model`.
        space_id: The space of its vectors.
        backend: What runs it, such as "static".
        revision: Of the weights, where there is one.
        dimensions: What to give as `dimensions`, the model's own first.
        max_tokens: Tokens that it reads of one text.
        max_texts: Texts of one request. Here and below, 0 means that the server announces no limit.
        max_request_bytes: Bytes of UTF-8 text, or of vectors, of one request.
        max_response_bytes: Bytes of one answer.
        max_pairs: Queries times candidates of one comparison.
        languages: BCP 47 tags of the languages it was trained for.
        has_roles: Whether input_type changes the vector.
        truncations: What to give as `truncation`.
        license: SPDX expression of the weights.
    """

    name: str
    space_id: str
    backend: str
    revision: str
    dimensions: tuple[int, ...]
    max_tokens: int
    max_texts: int
    max_request_bytes: int
    max_response_bytes: int
    max_pairs: int
    languages: tuple[str, ...]
    has_roles: bool
    truncations: tuple[Truncation, ...]
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHealth:
    """How one model fares.

    Attributes:
        model: Its name.
        status: Whether it serves.
        detail: One line for people; empty where all is well.
        queued_texts: Texts that wait for a batch now.
        embedded_texts: Texts embedded since the server started.
    """

    model: str
    status: ServingStatus
    detail: str
    queued_texts: int
    embedded_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """How the server fares.

    Attributes:
        status: The worst of the models', or that of the one asked for.
        version: Of the server.
        uptime_s: Seconds since the server started.
        models: Each model, or the one asked for.
    """

    status: ServingStatus
    version: str
    uptime_s: float
    models: tuple[ModelHealth, ...]
