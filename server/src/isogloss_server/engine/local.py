"""The Embedder of every local model: texts -> tokens -> Model.forward, off the event loop unless the call is small."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one block of texts gave, and the seconds that it took; rows are None where a text is at fault."""

    tokenized: Tokenized
    rows: Rows | None
    waited_s: float
    tokenization_s: float
    inference_s: float


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
        inline = sum(map(len, texts)) <= INLINE_CHARACTERS
        pieces: list[_Piece] = []
        for block in _blocks(texts):
            arguments = block, self._prompts.get(role, ""), truncation, self._clock.monotonic_s()
            pieces.append(self._work(*arguments) if inline else await self._workers.run(self._work, *arguments))
        return _joined(pieces)

    def _work(self, texts: Sequence[str], prompt: str, truncation: Truncation, asked_s: float) -> _Piece:
        """Tokenises a block, and infers it unless a text is at fault."""
        began_s = self._clock.monotonic_s()
        tokenized = self._tokens.encode([prompt + text for text in texts] if prompt else texts, truncation)
        if prompt:  # which must not stand in for a text that leaves no token
            tokenized.faults.update(self._tokens.encode(texts, Truncation.END).faults)
        tokenized_s = self._clock.monotonic_s()
        rows = None if tokenized.faults else self._model.forward(tokenized.batch)
        done_s = self._clock.monotonic_s()
        return _Piece(tokenized, rows, began_s - asked_s, tokenized_s - began_s, done_s - tokenized_s)

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


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields `texts` in pieces of about BLOCK_CHARACTERS; a longer text is a piece of its own."""
    first, characters = 0, 0
    for row, text in enumerate(texts):
        if row > first and characters + len(text) > BLOCK_CHARACTERS:
            yield texts[first:row]
            first, characters = row, 0
        characters += len(text)
    yield texts[first:]


def _joined(pieces: Sequence[_Piece]) -> Embedded:
    """Returns what all blocks gave, rows counted through; raises RowFaults where a text is at fault."""
    truncated: list[int] = []
    faults: dict[int, DomainError] = {}
    first = 0
    for piece in pieces:
        truncated += (first + row for row in piece.tokenized.truncated_rows)
        faults |= {first + row: fault for row, fault in piece.tokenized.faults.items()}
        first += len(piece.tokenized.batch.lengths)
    if faults:
        raise RowFaults(faults)
    rows = [piece.rows for piece in pieces if piece.rows is not None]
    counts = [piece.tokenized.batch.lengths for piece in pieces]
    return Embedded(
        rows=rows[0] if len(rows) == 1 else np.concatenate(rows),
        token_counts=counts[0] if len(counts) == 1 else np.concatenate(counts),
        truncated_rows=tuple(truncated),
        total_tokens=sum(int(part.sum()) for part in counts),
        tokenization_s=sum(piece.tokenization_s for piece in pieces),
        queue_s=sum(piece.waited_s for piece in pieces),
        inference_s=sum(piece.inference_s for piece in pieces),
    )
