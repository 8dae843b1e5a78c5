"""Records the calls into a tokenizer of the tokenizers library."""

import threading
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer


class RecordedCalls:
    """A tokenizer of the library, and the calls that tokenize.

    Attributes:
        names: The methods, in the order of the calls.
        characters: The characters that each call got.
        threads: The thread that each call was made on.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.clear()

    def clear(self) -> None:
        """Forgets the calls."""
        self.names: list[str] = []
        self.characters: list[int] = []
        self.threads: list[int] = []

    def encode(self, text: str, **options: Any) -> Any:
        self._record("encode", [text])
        return self._tokenizer.encode(text, **options)

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        self._record("encode_batch_fast", texts)
        return self._tokenizer.encode_batch_fast(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def _record(self, name: str, texts: Sequence[str]) -> None:
        self.names.append(name)
        self.characters.append(sum(map(len, texts)))
        self.threads.append(threading.get_ident())
