"""The tokenizer of local models: token ids, special tokens, prompts, and truncation."""

from collections.abc import Sequence
from dataclasses import dataclass

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
from isogloss_server.models.model_folder import ModelFile

MIN_PIECE_CHARACTERS = 16_384  # texts up to this length are tokenized whole, whatever the model's limit
FEW_TEXTS = 8  # up to here, one by one is faster than the library's threads
SPARE_TOKENS = 64  # beyond the limit, so that no kept token touches the cut of a piece
NEAR_CHARACTERS = 1024  # search range for white space around a cut
WHITE_SPACE = (" ", "\n", "\t")


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The tokens of n texts.

    Attributes:
        batch: The tokens; a text with a row error has none.
        truncated_rows: The rows of truncated texts, ascending.
        row_errors: The errors of texts that cannot be embedded, by row.
    """

    batch: TokenBatch
    truncated_rows: tuple[int, ...]
    row_errors: dict[int, DomainError]


class TextTokenizer:
    """A model's tokenizer, with the model's length limit; immutable, so several threads may use it."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, special: bool = False) -> None:
        """Takes ownership of a tokenizer, and switches off its own truncation and padding.

        Args:
            tokenizer: The tokenizer of the model.
            max_tokens: The limit of one text in tokens, special tokens included.
            special: True if the model expects special tokens around each text.

        Raises:
            ModelFilesError: The limit leaves no room for tokens of a text.
            UnsupportedModelError: The tokenizer adds more than tokens before and after a text.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._before, self._after = _special_ids(tokenizer) if special else ([], [])
        if max_tokens <= len(self._before) + len(self._after):
            raise ModelFilesError(f"invalid limit of {max_tokens} tokens: special tokens leave no room for a text")
        self._max_piece_characters = max(MIN_PIECE_CHARACTERS, 4 * max_tokens)
        self._prompts: dict[str, list[int]] = {}  # tokens by prompt, filled on first use
        self.vocabulary_size = _highest_id(tokenizer) + 1

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        """Tokenizes texts, and truncates those over the limit."""
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
        """Prefixes each text with `prompt`; a text without tokens of its own is still an error."""
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
        """Restores a prompt that truncation at the start has cut, by dropping tokens of the text instead."""
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
            return TextWithoutTokensError("the tokenizer removes all characters of the text")
        tokens += len(self._before) + len(self._after)
        counted = str(tokens) if whole else f"at least {tokens}"
        message = f"the text has {counted} tokens; the limit of the model is {self.max_tokens}"
        return TextTooLongError(message, actual=tokens, limit=self.max_tokens)

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        if len(texts) <= FEW_TEXTS:
            return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _longest_needed_piece(self, text: str, truncation: Truncation) -> str:
        """Returns a piece at one end of a long text that has more tokens than the limit, or the whole text.

        Tokenizing millions of characters for a few thousand tokens would take gigabytes. Since the piece is cut at
        white space, and has tokens to spare, its tokens are those of the whole text.
        """
        characters = self._max_piece_characters
        while characters < len(text):
            piece = _cut(text, characters, from_start=truncation is not Truncation.START)
            if len(self._encode_texts([piece])[0]) > self.max_tokens + SPARE_TOKENS:
                return piece
            characters *= 2
        return text


def _cut(text: str, characters: int, *, from_start: bool) -> str:
    """Returns about `characters` characters at one end of a text, cut at white space if there is some near the cut."""
    if from_start:
        near = max(text.rfind(space, characters - NEAR_CHARACTERS, characters) for space in WHITE_SPACE)
        return text[: near if near > 0 else characters]
    start = len(text) - characters
    places = (text.find(space, start, start + NEAR_CHARACTERS) for space in WHITE_SPACE)
    return text[min((near for near in places if near >= 0), default=start) :]


def read_tokenizer(file: ModelFile) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        ModelFilesError: The file is not a tokenizer.
    """
    try:
        return Tokenizer.from_buffer(bytes(file.data))
    except Exception as error:  # the library raises bare Exception
        raise ModelFilesError(f"{file.path} is not a tokenizer: {error}") from error


def _special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids of the special tokens that the tokenizer adds before and after a text.

    Raises:
        UnsupportedModelError: The tokenizer does more than that.
    """
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    first = next((at for at in range(len(full)) if bare and full[at : at + len(bare)] == bare), 0)
    before, after = full[:first], full[first + len(bare) :]
    for text in ("a", "one two"):
        bare, full = (tokenizer.encode(text, add_special_tokens=special).ids for special in (False, True))
        if before + bare + after != full:
            raise UnsupportedModelError("unsupported tokenizer: it does more than add tokens before and after a text")
    return before, after


def _highest_id(tokenizer: Tokenizer) -> int:
    """Returns the highest id of a token; a vocabulary may have gaps, so its size does not determine it."""
    size: int = tokenizer.get_vocab_size(with_added_tokens=True)
    if all(tokenizer.id_to_token(number) is not None for number in range(size)):
        return size - 1
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values()))
