"""Texts to token ids: counting and truncation, the same for every local model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isogloss.wire.enums import Truncation
from tokenizers import Tokenizer

from isogloss_server.errors import (
    DomainError,
    ModelFilesError,
    TextTooLongError,
    TextWithoutTokensError,
    UnsupportedModelError,
)
from isogloss_server.models.interfaces import TokenBatch

LEAST_PIECE_CHARACTERS = 16_384  # up to here a text is tokenised whole, whatever the model reads of it


FEW_TEXTS = 8  # sooner done one by one than by several threads


SPARE_TOKENS = 64  # beyond the limit, so that no token that is kept touches the cut


NEAR_CHARACTERS = 1024


WHITE_SPACE = (" ", "\n", "\t")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of n texts, which of them were cut, and which cannot be embedded."""

    batch: TokenBatch
    truncated_rows: tuple[int, ...]
    row_errors: dict[int, DomainError]


class TextTokenizer:
    """A model's tokenizer with the model's length limit; nothing changes it, so several threads may call it."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, special: bool = False) -> None:
        """Takes the tokenizer over: truncation and padding that it was saved with are switched off.

        `max_tokens` counts the special tokens that stand around each text where `special` is set.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._before, self._after = _special_ids(tokenizer) if special else ([], [])
        if max_tokens <= len(self._before) + len(self._after):
            raise ModelFilesError(f"a model that reads {max_tokens} tokens has no room for a text's own")
        self._max_piece_characters = max(LEAST_PIECE_CHARACTERS, 4 * max_tokens)
        self._prompts: dict[str, list[int]] = {}  # those of the model, once seen, with their tokens
        self.vocabulary_size = _highest_id(tokenizer) + 1

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        """Returns the tokens of `texts`; a faulty text has none, and an entry in `row_errors`."""
        pieces = [
            text if len(text) <= self._max_piece_characters else self._longest_needed_piece(text, truncation)
            for text in texts
        ]
        before, after = self._before, self._after
        room = self.max_tokens - len(before) - len(after)
        truncated: list[int] = []
        row_errors: dict[int, DomainError] = {}
        ids: list[int] = []
        lengths: list[int] = []
        for row, tokens in enumerate(self._encode_texts(pieces)):
            kept = tokens
            if len(tokens) > room and truncation is not Truncation.ERROR:
                truncated.append(row)
                kept = tokens[:room] if truncation is Truncation.END else tokens[-room:]
            elif not tokens or len(tokens) > room:
                whole = len(pieces[row]) == len(texts[row])
                row_errors[row] = self._row_error(len(tokens), whole=whole)
                lengths.append(0)
                continue
            ids += before
            ids += kept
            ids += after
            lengths.append(len(before) + len(kept) + len(after))
        batch = TokenBatch(np.array(ids, dtype=np.int32), np.array(lengths, dtype=np.int64))
        return Tokenized(batch, tuple(truncated), row_errors)

    def encode_with_prompt(self, prompt: str, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        """Returns the tokens of `texts`, each behind `prompt`, which does not stand in for a text without tokens."""
        if not prompt:
            return self.encode(texts, truncation)
        tokenized = self.encode([prompt + text for text in texts], truncation)
        if truncation is Truncation.START:
            self._restore_prompt(prompt, tokenized)
        least = len(self._before) + len(self._prompt_ids(prompt)) + len(self._after)
        suspects = np.flatnonzero(tokenized.batch.lengths <= least).tolist()
        alone = self.encode([texts[row] for row in suspects], Truncation.END)
        tokenized.row_errors.update((suspects[row], error) for row, error in alone.row_errors.items())
        return tokenized

    def _restore_prompt(self, prompt: str, tokenized: Tokenized) -> None:
        """Lets what a cut at the start took of the prompt be taken of the text."""
        ids = self._prompt_ids(prompt)[: self.max_tokens - len(self._before) - len(self._after)]
        starts = np.cumsum(tokenized.batch.lengths) - tokenized.batch.lengths + len(self._before)
        for row in tokenized.truncated_rows:
            tokenized.batch.ids[starts[row] :][: len(ids)] = ids

    def _prompt_ids(self, prompt: str) -> list[int]:
        if prompt not in self._prompts:
            self._prompts[prompt] = self._encode_texts([prompt])[0]
        return self._prompts[prompt]

    def _row_error(self, tokens: int, *, whole: bool) -> DomainError:
        if not tokens:
            return TextWithoutTokensError("the tokenizer leaves nothing of this text")
        tokens += len(self._before) + len(self._after)
        counted = str(tokens) if whole else f"at least {tokens}"
        message = f"the text has {counted} tokens; the model reads {self.max_tokens}"
        return TextTooLongError(message, actual=tokens, limit=self.max_tokens)

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) <= FEW_TEXTS:
            return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _longest_needed_piece(self, text: str, truncation: Truncation) -> str:
        """Returns so much of one end of a long text that it holds more tokens than the model reads, or all of it.

        Millions of tokens of which all but the first thousands are thrown away would cost gigabytes. Cut between
        words, and with tokens to spare, a piece's tokens are those of the whole text.
        """
        characters = self._max_piece_characters
        while characters < len(text):
            piece = _cut(text, characters, from_start=truncation is not Truncation.START)
            if len(self._encode_texts([piece])[0]) > self.max_tokens + SPARE_TOKENS:
                return piece
            characters *= 2
        return text


def _cut(text: str, characters: int, *, from_start: bool) -> str:
    """Returns about so many characters of one end of a text, cut at white space where some is near."""
    if from_start:
        near = max(text.rfind(space, characters - NEAR_CHARACTERS, characters) for space in WHITE_SPACE)
        return text[: near if near > 0 else characters]
    start = len(text) - characters
    found = (text.find(space, start, start + NEAR_CHARACTERS) for space in WHITE_SPACE)
    return text[min((near for near in found if near >= 0), default=start) :]


def read_tokenizer(file: Path) -> Tokenizer:
    """Returns the tokenizer of a tokenizer.json.

    Raises:
        ModelFilesError: the file is no tokenizer.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ModelFilesError(f"{file} is not a tokenizer: {error}") from error


def _special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids that the tokenizer puts before and after a text of its own accord.

    Raises:
        UnsupportedModelError: it does something else than that.
    """
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    first = next((at for at in range(len(full)) if bare and full[at : at + len(bare)] == bare), 0)
    before, after = full[:first], full[first + len(bare) :]
    for text in ("a", "one two"):
        bare, full = (tokenizer.encode(text, add_special_tokens=special).ids for special in (False, True))
        if before + bare + after != full:
            raise UnsupportedModelError("the tokenizer does more to a text than to put tokens before and after it")
    return before, after


def _highest_id(tokenizer: Tokenizer) -> int:
    """Returns the highest id of a token; a vocabulary of so many tokens may have gaps."""
    size: int = tokenizer.get_vocab_size(with_added_tokens=True)
    if all(tokenizer.id_to_token(number) is not None for number in range(size)):
        return size - 1
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values()))
