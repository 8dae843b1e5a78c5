"""The tokenizer of local models: token ids, special tokens, prompts, and truncation."""

from collections.abc import Iterator, Sequence
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
    first_line,
)
from isogloss_server.models.interfaces import TokenBatch
from isogloss_server.models.model_folder import ModelFile

# Limits of the characters in one call into the library: of several texts together, and of one text, for each token that
# the model reads. In no language has a token that many characters on average.
CALL_CHARACTERS = 1 << 16
CHARACTERS_PER_TOKEN = 32
# Up to here, one text at a time on the calling thread is as fast as the library's threads, and never waits for them.
FEW_CHARACTERS = 1 << 10
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
        self._before, self._after = special_ids(tokenizer) if special else ([], [])
        if max_tokens <= len(self._before) + len(self._after):
            raise ModelFilesError(f"invalid limit of {max_tokens} tokens: special tokens leave no room for a text")
        self._first_piece_characters = max(CALL_CHARACTERS // 4, max_tokens + SPARE_TOKENS)
        self._max_characters = max(2 * CALL_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens)
        self._prompts: dict[str, list[int]] = {}  # tokens by prompt, filled on first use
        self.vocabulary_size = _highest_id(tokenizer) + 1

    def encode(self, texts: Sequence[str], truncation: Truncation) -> Tokenized:
        """Tokenizes texts, and truncates those over the limit."""
        before, after = self._before, self._after
        room = self.max_tokens - len(before) - len(after)
        truncated: list[int] = []
        row_errors: dict[int, DomainError] = {}
        ids: list[int] = []
        lengths: list[int] = []
        encoded, read_characters = self._encode_ends(texts, truncation)
        for row, tokens in enumerate(encoded):
            kept = tokens
            is_cut = len(tokens) > room or row in read_characters
            if not tokens or (is_cut and truncation is Truncation.ERROR):
                row_errors[row] = self._row_error(len(tokens), read_characters.get(row), len(texts[row]))
                lengths.append(0)
                continue
            if is_cut:
                truncated.append(row)
                kept = tokens[-room:] if truncation is Truncation.START else tokens[:room]
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
        lengths = tokenized.batch.lengths
        starts, rooms = np.cumsum(lengths) - lengths + len(self._before), lengths - len(self._before) - len(self._after)
        for row in tokenized.truncated_rows:
            kept = ids[: rooms[row]]
            tokenized.batch.ids[starts[row] :][: len(kept)] = kept

    def _prompt_ids(self, prompt: str) -> list[int]:
        if prompt not in self._prompts:
            self._prompts[prompt] = self._encode_texts([prompt])[0]
        return self._prompts[prompt]

    def _row_error(self, tokens: int, read_characters: int | None, characters: int) -> DomainError:
        """Returns the error of a text; `read_characters` is None if all of them were tokenized."""
        special = len(self._before) + len(self._after)
        if tokens > self.max_tokens - special:
            tokens += special
            counted = str(tokens) if read_characters is None else f"at least {tokens}"
            message = f"the text has {counted} tokens; the limit of the model is {self.max_tokens}"
            return TextTooLongError(message, actual=tokens, limit=self.max_tokens)
        if read_characters is not None:
            message = (
                f"the text has {characters} characters, of which the model reads at most {read_characters}: "
                f"{CHARACTERS_PER_TOKEN} for each token of its limit"
            )
            return TextTooLongError(message, actual=characters, limit=read_characters)
        return TextWithoutTokensError("the tokenizer removes all characters of the text")

    def _encode_ends(self, texts: Sequence[str], truncation: Truncation) -> tuple[list[list[int]], dict[int, int]]:
        """Tokenizes texts, those that are too long only at the end that truncation keeps.

        Returns:
            The tokens of each text, and the number of tokenized characters of those that were not tokenized whole.
        """
        longest = self._first_piece_characters
        if max(map(len, texts), default=0) <= longest:
            return self._encode_texts(texts), {}
        short = iter(self._encode_texts([text for text in texts if len(text) <= longest]))
        encoded: list[list[int]] = []
        read_characters: dict[int, int] = {}
        for row, text in enumerate(texts):
            if len(text) <= longest:
                encoded.append(next(short))
                continue
            tokens, characters = self._encode_end(text, truncation)
            encoded.append(tokens)
            if characters < len(text):
                read_characters[row] = characters
        return encoded, read_characters

    def _encode_end(self, text: str, truncation: Truncation) -> tuple[list[int], int]:
        """Tokenizes a piece at one end of a long text that has more tokens than the limit, or else the whole text.

        Tokenizing millions of characters for a few thousand tokens would take gigabytes and seconds. Since the piece is
        cut at white space, and has tokens to spare, its tokens are those of the whole text.

        Returns:
            The tokens, and the number of tokenized characters.
        """
        characters = self._first_piece_characters
        while True:
            piece = text
            if characters < len(text):
                piece = _cut(text, characters, from_start=truncation is not Truncation.START)
            ids = self._encode_texts([piece])[0]
            if len(ids) > self.max_tokens + SPARE_TOKENS or characters >= min(len(text), self._max_characters):
                return ids, len(piece)
            characters = min(2 * characters, self._max_characters)

    def _encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of texts, without special tokens.

        Tokenizer.encode_batch_fast releases the interpreter, for a single text too; Tokenizer.encode never does.
        """
        if sum(map(len, texts)) <= FEW_CHARACTERS:
            return [self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts]
        calls = (
            self._tokenizer.encode_batch_fast(part, add_special_tokens=False)
            for _, part in split(texts, CALL_CHARACTERS)
        )
        return [encoding.ids for encodings in calls for encoding in encodings]


def split(texts: Sequence[str], characters: int, *, each: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yields texts in blocks, each with its first row; a longer text is a block of its own.

    Args:
        texts: The texts, at least one.
        characters: The most characters of a block.
        each: Characters to be added to each text: those of its prompt.
    """
    first, size = 0, 0
    for row, text in enumerate(texts):
        if row > first and size + len(text) + each > characters:
            yield first, list(texts[first:row])
            first, size = row, 0
        size += len(text) + each
    yield first, list(texts[first:])


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
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and panics
        raise ModelFilesError(f"{file.path} is not a tokenizer: {first_line(error)}") from error


def special_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the ids of the special tokens that the tokenizer adds before and after a text.

    Raises:
        UnsupportedModelError: The tokenizer does more than that.
    """
    bare, full = _both_ids(tokenizer, "a")
    first = next((at for at in range(len(full)) if bare and full[at : at + len(bare)] == bare), 0)
    before, after = full[:first], full[first + len(bare) :]
    for text in ("a", "one two"):
        bare, full = _both_ids(tokenizer, text)
        if before + bare + after != full:
            raise UnsupportedModelError("unsupported tokenizer: it does more than add tokens before and after a text")
    return before, after


def _both_ids(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a text without and with special tokens."""
    bare, full = (tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids for special in (False, True))
    return bare, full


def _highest_id(tokenizer: Tokenizer) -> int:
    """Returns the highest id of a token; a vocabulary may have gaps, so its size does not determine it."""
    size: int = tokenizer.get_vocab_size(with_added_tokens=True)
    if all(tokenizer.id_to_token(number) is not None for number in range(size)):
        return size - 1
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values()))
