"""Batchers that are closed at the end."""

from collections.abc import Callable, Iterator

import pytest
from isogloss_server.engine.batcher import Batcher
from isogloss_server.models.base import Model

from tests.support.gated_model import DIMENSIONS, OwnClock


@pytest.fixture
def make() -> Iterator[Callable[..., Batcher]]:
    """Makes batchers that are closed at the end."""
    made: list[Batcher] = []

    def batcher(model: Model, clock: OwnClock | None = None, *, threads: int = 1, tokens: int = 1000) -> Batcher:
        clock = clock or OwnClock()
        made.append(Batcher(model, dimensions=DIMENSIONS, threads=threads, max_batch_tokens=tokens, clock=clock))
        return made[-1]

    yield batcher
    for one in made:
        one.close(wait_s=60)
        assert not any(thread.is_alive() for thread in one._threads)
