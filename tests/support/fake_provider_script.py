"""What a fake provider is told to do with its next requests, and what it notes of those that came."""

import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np

from tests.support.fake_provider_wire import Rows


class Gate:
    """Holds whoever waits until it is opened, and tells those who hang up meanwhile from the others."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()

    def open(self) -> None:
        """Lets everybody through."""
        self._writer.close()

    def close(self) -> None:
        """Opens it for good, and gives its sockets back."""
        self.open()
        self._reader.close()

    def wait(self, connection: socket.socket) -> bool:
        """Returns once it is open: True, or once the other end of the connection has hung up: False."""
        ready, _, _ = select.select([self._reader, connection], [], [], 60)
        return connection not in ready


class Ending(Enum):
    """How an answer ends."""

    WHOLE = auto()
    RESET = auto()  # half of the body, then RST
    SILENT = auto()  # closed without a word


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """What one request meets. What is left out is as the request deserves."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    change: Callable[[Rows], Rows] = lambda rows: rows  # of the answer's vectors
    order: Callable[[int], Sequence[int]] = range  # which rows are given for n texts, one after another
    edit: Callable[[dict[str, Any]], Any] = lambda answer: answer  # of the answer's body, before it is encoded
    gate: Gate | None = None  # before the answer
    ending: Ending = Ending.WHOLE


@dataclass(slots=True)
class Request:
    """What arrived: `moment_s` is of the provider's clock; `cut` is set once the client has hung up on it."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]
    moment_s: float
    cut: threading.Event = field(default_factory=threading.Event)

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        return list(self.body.get("texts") or self.body.get("input") or ())


def changed(change: Callable[[Rows], Any], **more: Any) -> Scripted:
    """Returns an answer whose vectors are changed."""
    return Scripted(change=lambda rows: np.asarray(change(rows), np.float32), **more)
