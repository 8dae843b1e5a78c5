"""What loading a local model gives: all that its Embedder is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isogloss_server.models.base import Model, ModelCard, Role
from isogloss_server.models.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A local model, loaded but not yet checked."""

    model: Model
    tokens: Tokens
    card: ModelCard
    prompts: Mapping[Role, str]
    probes: Sequence[tuple[str, Sequence[float]]]  # texts with the vectors that must come out for them
    tolerance: float  # by which a vector may miss a known one, as a share of its length
    batched: bool  # whether a pass costs so much that callers' texts are best computed together
