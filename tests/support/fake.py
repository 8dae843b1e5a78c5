"""A FakeServer with the settings of the client's tests, and the vectors and scores to expect of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from isogloss import Metric
from isogloss.testing import FakeServer, Received

MODEL, SPACE, DIMENSIONS = "default", "space-1", 16
LIMITS = ("max_texts", "max_request_bytes", "max_response_bytes", "max_pairs")
Array = np.ndarray[Any, Any]


def fake_server(**settings: Any) -> FakeServer:
    """Returns a server whose default limits no test reaches."""
    return FakeServer(**{"model": MODEL, "space_id": SPACE, "dimensions": (DIMENSIONS, 8), **settings})


DEFAULTS = fake_server()


def set_limits(server: FakeServer, **limits: int) -> None:
    """Sets the limits of a server; 0 stands for the default."""
    for name, value in limits.items():
        setattr(server, name, value or getattr(DEFAULTS, name))


def vector(text: str) -> Array:
    """Returns the vector of a text, float32 [DIMENSIONS]."""
    return vectors([text])[0]


def vectors(texts: Sequence[str]) -> Array:
    """Returns the vectors of texts, float32 [n, DIMENSIONS]."""
    return DEFAULTS.vectors(texts)


def score(queries: Array, candidates: Array, metric: Metric) -> Array:
    """Returns the scores of all pairs, float32 [q, c], by the definitions of the metrics."""
    one, other = queries.astype(np.float64)[:, None, :], candidates.astype(np.float64)[None, :, :]
    dots = (one * other).sum(axis=2)
    if metric is Metric.DOT:
        return dots.astype(np.float32)
    if metric is Metric.EUCLIDEAN:
        return -np.sqrt(((one - other) ** 2).sum(axis=2)).astype(np.float32)
    norms = np.sqrt((one**2).sum(axis=2) * (other**2).sum(axis=2))
    return (dots / np.where(norms > 0, norms, 1)).astype(np.float32)


def received(server: FakeServer, method: str) -> list[Received]:
    """Returns the received requests of one method, in order."""
    return [request for request in server.requests if request.method == method]


def messages(server: FakeServer, method: str) -> list[Any]:
    """Returns the received messages of one method, in order."""
    return [request.request for request in received(server, method)]


def methods(server: FakeServer) -> list[str]:
    """Returns the methods of all received requests, in order."""
    return [request.method for request in server.requests]
