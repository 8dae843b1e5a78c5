"""A source of texts of any length -> chunks, each for one request."""

from dataclasses import dataclass

from isogloss._arguments import utf8_bytes
from isogloss.errors import IsoglossError
from isogloss.results import Embeddings


@dataclass(slots=True, eq=False)
class Chunk:
    """Texts that follow one another, on their way to vectors.

    Attributes:
        start: Row of the first text in the whole.
        texts: The texts.
        in_flight: Whether an answer may still come.
        due_s: The moment before which it is not to be sent.
        refusals: How often the server has put it off.
        result: The vectors, or why there will be none.
    """

    start: int
    texts: tuple[str, ...]
    in_flight: bool = False
    due_s: float = 0.0
    refusals: int = 0
    result: Embeddings | IsoglossError | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will become of it."""
        return self.result is not None

    @property
    def waiting(self) -> bool:
        """Whether it is to be sent."""
        return not self.in_flight and not self.done

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Returns the chunk as two."""
        middle = len(self.texts) // 2
        return Chunk(self.start, self.texts[:middle]), Chunk(self.start + middle, self.texts[middle:])


class Chunker:
    """Fills one chunk after another, by count and by bytes of UTF-8."""

    def __init__(self, max_texts: int, max_bytes: int) -> None:
        self.max_texts = max_texts
        self._max_bytes = max_bytes
        self._texts: list[str] = []
        self._bytes = 0
        self._start = 0
        self._left_over: tuple[str, int] | None = None  # a text that did not fit, and its bytes

    @property
    def full(self) -> bool:
        """Whether the chunk takes no more texts."""
        return self._left_over is not None or len(self._texts) >= self.max_texts or self._bytes >= self._max_bytes

    def add(self, text: str) -> bool:
        """Takes the next text, unless `full` already; returns whether the chunk is full now.

        Raises:
            InvalidArgumentError: It is no str that UTF-8 can write (reason BAD_TEXT).
        """
        size = utf8_bytes(f"texts[{self._start + len(self._texts)}]", text)
        if self._texts and self._bytes + size > self._max_bytes:
            self._left_over = text, size
        else:  # a text too large by itself goes alone, for the server to refuse
            self._texts.append(text)
            self._bytes += size
        return self.full

    def cut(self) -> Chunk | None:
        """Returns the chunk as far as it is filled, and begins the next; None where there is no text."""
        if not self._texts:
            return None
        chunk = Chunk(self._start, tuple(self._texts))
        self._start += len(self._texts)
        self._texts, self._bytes = [], 0
        if self._left_over is not None:
            text, self._bytes = self._left_over
            self._texts, self._left_over = [text], None
        return chunk
