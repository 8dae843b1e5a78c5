"""An embedder that offers some truncations only, and keeps those that it is asked for."""

from collections.abc import Sequence
from dataclasses import replace

from isogloss.wire.enums import InputType, Truncation
from isogloss_server.models.interfaces import Embedded, Urgency

from tests.support.in_process import CARD, CountingEmbedder


class Cutting(CountingEmbedder):
    """Offers the truncations that it is made with; `asked` has one for each call."""

    def __init__(self, *offered: Truncation) -> None:
        super().__init__()
        self.asked: list[Truncation] = []
        self.card = replace(CARD, truncations=offered)

    async def embed(
        self,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
    ) -> Embedded:
        """Returns rows float32 [n, 4]."""
        self.asked.append(truncation)
        return await super().embed(texts, input_type, truncation, urgency, allow_partial=allow_partial)
