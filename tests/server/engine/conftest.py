"""Batchers that are closed at the end."""

from collections.abc import Callable, Iterator

import pytest
from isogloss_server.clock import Clock
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.monitoring import Report, ignore_report
from isogloss_server.models.interfaces import Model

from tests.support.gated_model import DIMENSIONS, WATCHDOG_S, OwnClock


@pytest.fixture
def make() -> Iterator[Callable[..., Batcher]]:
    """Makes batchers that are closed at the end."""
    made: list[Batcher] = []

    def batcher(
        model: Model,
        clock: Clock | None = None,
        *,
        threads: int = 1,
        tokens: int = 1000,
        report: Report = ignore_report,
    ) -> Batcher:
        made.append(
            Batcher(
                model,
                dimensions=DIMENSIONS,
                threads=threads,
                max_batch_tokens=tokens,
                clock=clock or OwnClock(),
                watchdog_s=WATCHDOG_S,
                report=report,
            )
        )
        return made[-1]

    yield batcher
    for one in made:
        one.close(wait_s=60)
        assert not any(thread.is_alive() for thread in one._threads)
