"""The Embedder of every local model: texts -> tokens -> Model.forward, off the event loop unless the call is small."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

from isogloss_server.clock import Clock
from isogloss_server.engine.workers import Workers
from isogloss_server.errors import DomainError, ModelFilesError, RowFaults
from isogloss_server.models.base import Embedded, Model, ModelCard, Role, Rows, Truncation
from isogloss_server.models.tokens import Tokenized, Tokens

BLOCK_CHARACTERS = 1 << 16  # tokenised at a time: a cancelled call ends with the block it is in
INLINE_CHARACTERS = 1 << 10  # so few are done sooner than another thread could take them over
PROBE_TOLERANCE = 1e-5  # by which a known vector may be missed, as a share of its length
WARM_UP_TEXTS = ("Good morning", "Buenos días", "おはようございます", "صباح الخير", "Where is the station?")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Spent:
    """Seconds that pieces of work of one kind took, and waited for a thread before; inline work waits for none."""

    inline: bool
    worked_s: float = 0.0
    waited_s: float = 0.0


class LocalEmbedder:
    """Runs a local model's tokenizer and forward pass."""

    def __init__(
        self, model: Model, tokens: Tokens, card: ModelCard, prompts: Mapping[Role, str], workers: Workers, clock: Clock
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._card = card
        self._prompts = prompts
        self._workers = workers
        self._clock = clock

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return self._card

    async def embed(self, texts: Sequence[str], role: Role, truncation: Truncation) -> Embedded:
        """Returns the vectors of `texts`, in order; see `models.base.Embedder`."""
        prompt = self._prompts.get(role, "")
        prompted = [prompt + text for text in texts] if prompt else texts
        inline = sum(map(len, prompted)) <= INLINE_CHARACTERS
        tokenizing, inferring = _Spent(inline), _Spent(inline)
        parts = [await self._run(tokenizing, self._tokens.encode, block, truncation) for block in _blocks(prompted)]
        if prompt:
            await self._check_behind_prompt(texts)
        truncated = _truncated_or_faults(parts)
        rows = [await self._run(inferring, self._model.forward, part.batch) for part in parts]
        counts = np.concatenate([part.batch.lengths for part in parts]) if len(parts) > 1 else parts[0].batch.lengths
        return Embedded(
            rows=np.concatenate(rows) if len(rows) > 1 else rows[0],
            token_counts=counts,
            truncated_rows=truncated,
            total_tokens=int(counts.sum()),
            tokenization_s=tokenizing.worked_s,
            queue_s=tokenizing.waited_s + inferring.waited_s,
            inference_s=inferring.worked_s,
        )

    def verify(self, probes: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Runs a first batch, and holds its vectors against known ones and against each text's vector alone.

        Raises:
            ModelFilesError: a vector is not finite, all zeros, not the known one, or depends on its neighbours.
        """
        texts = [*(text for text, _ in probes), *WARM_UP_TEXTS]
        together = self._vectors(texts)
        alone = np.concatenate([self._vectors([text]) for text in texts])
        known = [np.asarray(vector, dtype=np.float32) for _, vector in probes]
        lengths = np.linalg.norm(together, axis=1)
        if not np.isfinite(together).all() or not lengths.all():
            raise ModelFilesError("the model is damaged: it gives vectors that are not finite, or all zeros")
        if any(vector.shape != row.shape for vector, row in zip(known, together, strict=False)):
            raise ModelFilesError("the model is damaged: its vectors are not as wide as the known ones")
        for what, others in (("known vectors", known), ("vectors of the same texts alone", list(alone))):
            apart = [np.linalg.norm(row - other) for row, other in zip(together, others, strict=False)]
            if (np.array(apart) > PROBE_TOLERANCE * lengths[: len(apart)]).any():
                raise ModelFilesError(f"the model is damaged: its vectors differ from the {what}")

    def _vectors(self, texts: Sequence[str]) -> Rows:
        return self._model.forward(self._tokens.encode(texts, Truncation.END).batch)

    async def _check_behind_prompt(self, texts: Sequence[str]) -> None:
        """Raises RowFaults where a text leaves no token but those of its prompt."""
        bare = [await self._workers.run(self._tokens.encode, block, Truncation.END) for block in _blocks(texts)]
        _truncated_or_faults(bare)

    async def _run(self, spent: _Spent, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        asked_s = self._clock.monotonic_s()
        if spent.inline:
            result = work(*args, **kwargs)
            spent.worked_s += self._clock.monotonic_s() - asked_s
            return result

        def timed() -> T:
            """Returns the result, and notes what waiting and working took."""
            began_s = self._clock.monotonic_s()
            spent.waited_s += began_s - asked_s
            try:
                return work(*args, **kwargs)
            finally:
                spent.worked_s += self._clock.monotonic_s() - began_s

        return await self._workers.run(timed)


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields `texts` in pieces of about BLOCK_CHARACTERS; a longer text is a piece of its own."""
    first, characters = 0, 0
    for row, text in enumerate(texts):
        if row > first and characters + len(text) > BLOCK_CHARACTERS:
            yield texts[first:row]
            first, characters = row, 0
        characters += len(text)
    yield texts[first:]


def _truncated_or_faults(parts: Sequence[Tokenized]) -> tuple[int, ...]:
    """Returns the truncated rows of all parts, counted through; raises RowFaults where a text is at fault."""
    truncated: list[int] = []
    faults: dict[int, DomainError] = {}
    first = 0
    for part in parts:
        truncated += (first + row for row in part.truncated_rows)
        faults |= {first + row: fault for row, fault in part.faults.items()}
        first += len(part.batch.lengths)
    if faults:
        raise RowFaults(faults)
    return tuple(truncated)
