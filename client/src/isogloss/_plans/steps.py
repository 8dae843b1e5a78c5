"""What the plan of an embed_many asks its client to do. The client answers each step, or throws in what went wrong."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from isogloss._plans.chunks import Chunker
from isogloss._plans.run import Call
from isogloss.results import EmbeddedChunk

END = object()  # in the place of a message: the server has ended the stream, with OK


@dataclass(frozen=True, slots=True)
class Read:
    """Feed `chunker` from the source until it is full; answered by whether the source may have more."""

    chunker: Chunker


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream. There is none."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request on the stream, without waiting until it is gone."""

    request: Any


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Send nothing more on the stream."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Cancel the stream."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Answered by the stream's next message, by END, or by None where neither comes within `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """Give the caller a chunk."""

    chunk: EmbeddedChunk


Step = Call | Read | Open | Send | HalfClose | Drop | Receive | Pause | Give
Steps = Generator[Step, Any, None]
