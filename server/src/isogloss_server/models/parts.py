"""What loading a local model gives: all that its Embedder is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isogloss_server.models.base import Model, ModelCard, Role, Tolerance
from isogloss_server.models.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A local model, loaded but not yet checked."""

    model: Model
    tokens: Tokens
    card: ModelCard
    prompts: Mapping[Role, str]
    probes: Sequence[tuple[str, Sequence[float]]]  # texts with the vectors that must come out for them
    tolerance: Tolerance
    batched: bool  # whether a pass costs so much that callers' texts are best computed together
    give_back: Callable[[], None] = lambda: None  # after the checks: frees what nothing but loading and they had read
    threads: int | None = None  # passes at a time that the runtime wants; None: as many as asked for
