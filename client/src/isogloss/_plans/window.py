"""The chunks that an embed_many holds, in order."""

from isogloss._plans.chunks import Chunk
from isogloss._plans.embed import shifted
from isogloss.errors import IsoglossError
from isogloss.results import EmbeddedChunk


class Window:
    """At most so many chunks, from reading their texts to giving them out.

    Where a chunk fails for good, those after it are let go, and its error is what is found in its place. Where the
    source fails, that comes after all chunks that it had given.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: list[Chunk] = []
        self._more = True
        self._failure: Exception | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def room(self) -> bool:
        """Whether another chunk is to be read."""
        return self._more and len(self._chunks) < self._most

    @property
    def ready(self) -> bool:
        """Whether the first chunk has become what it will be."""
        return bool(self._chunks) and self._chunks[0].done

    def waiting(self) -> list[Chunk]:
        """Returns the chunks that are to be sent."""
        return [chunk for chunk in self._chunks if chunk.waiting]

    def take(self, chunk: Chunk) -> None:
        """Holds another chunk."""
        self._chunks.append(chunk)

    def end(self, failure: Exception | None = None) -> None:
        """Takes note that the source has no more texts, for `failure` where it broke off."""
        self._more, self._failure = False, failure

    def first(self) -> EmbeddedChunk | None:
        """Lets go of the first chunk, where it has its answer; raises its error, where it failed."""
        result = self._chunks[0].result if self._chunks else None
        if isinstance(result, IsoglossError):
            raise result
        if result is None:
            return None
        chunk = self._chunks.pop(0)
        return EmbeddedChunk(start=chunk.start, texts=chunk.texts, embeddings=result)

    def check(self) -> None:
        """Raises what the source broke off for, once nothing is held any more."""
        if self._failure is not None:
            raise self._failure

    def halve(self, chunk: Chunk) -> int:
        """Puts two chunks in the place of one that is too large for a request; returns how many texts may be tried."""
        place = self._chunks.index(chunk)
        self._chunks[place : place + 1] = chunk.halves()
        return len(self._chunks[place + 1].texts)

    def fail(self, chunk: Chunk, error: IsoglossError) -> None:
        """Takes note that `chunk` will have no answer."""
        if chunk in self._chunks:
            del self._chunks[self._chunks.index(chunk) + 1 :]
            chunk.result = shifted(error, chunk.start)
            self.end()

    def fail_rest(self, error: IsoglossError) -> None:
        """Takes note that no chunk without an answer will have one."""
        for chunk in self._chunks:
            if not chunk.done:
                self.fail(chunk, error)
                break
