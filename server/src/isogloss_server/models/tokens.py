"""Texts to token ids: counting and truncation, the same for every local model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from isogloss_server.errors import DomainError, ModelFilesError, TextTooLongError, TextWithoutTokensError
from isogloss_server.models.base import TokenBatch, Truncation


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of n texts, which of them were cut, and which cannot be embedded."""

    batch: TokenBatch
    truncated_rows: tuple[int, ...]
    faults: dict[int, DomainError]


class Tokens:
    """A model's tokenizer with the model's length limit; safe to call from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        """Takes the tokenizer over: truncation and padding that it was saved with are switched off."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.vocabulary_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_file(cls, file: Path, *, default_max_tokens: int) -> "Tokens":
        """Returns the tokenizer of a tokenizer.json, which may carry a length limit of its own.

        Raises:
            ModelFilesError: the file is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise ModelFilesError(f"{file} is not a tokenizer: {error}") from error
        limit = (tokenizer.truncation or {}).get("max_length")
        return cls(tokenizer, max_tokens=int(limit or default_max_tokens))

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        """Returns the tokens of `texts`; a faulty text has none, and an entry in `faults`."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        limit = self.max_tokens
        truncated: list[int] = []
        faults: dict[int, DomainError] = {}
        ids: list[int] = []
        lengths: list[int] = []
        for row, encoding in enumerate(encodings):
            tokens = encoding.ids
            if not tokens:
                faults[row] = _without_tokens()
            elif len(tokens) > limit and truncation is Truncation.ERROR:
                faults[row] = _too_long(len(tokens), limit)
                tokens = []
            elif len(tokens) > limit:
                truncated.append(row)
                tokens = tokens[:limit] if truncation is Truncation.END else tokens[-limit:]
            ids.extend(tokens)
            lengths.append(len(tokens))
        batch = TokenBatch(np.array(ids, dtype=np.int32), np.array(lengths, dtype=np.int64))
        return Tokenized(batch, tuple(truncated), faults)


def _without_tokens() -> DomainError:
    return TextWithoutTokensError("the tokenizer leaves nothing of this text")


def _too_long(tokens: int, limit: int) -> DomainError:
    message = f"the text has {tokens} tokens; the model reads {limit}"
    return TextTooLongError(message, actual=tokens, limit=limit)
