"""Fixture of the tests of the batcher."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from isogloss_server.clock import Clock
from isogloss_server.engine.backlog import Throughput
from isogloss_server.engine.batcher import Batcher
from isogloss_server.engine.monitoring import Report, ignore_report
from isogloss_server.models.interfaces import Model

from tests.support.gated_model import DIMENSIONS, WATCHDOG_S
from tests.support.in_process import new_throughput
from tests.support.manual_clock import ManualClock


@pytest.fixture
def make_batcher() -> Iterator[Callable[..., Batcher]]:
    """Returns a function that makes batchers, which are closed after the test."""
    made: list[Batcher] = []

    def batcher(
        model: Model,
        clock: Clock | None = None,
        *,
        threads: int = 1,
        tokens: int = 1000,
        report: Report = ignore_report,
        throughput: Throughput | None = None,
        **measured: Any,
    ) -> Batcher:
        made.append(
            Batcher(
                model,
                dimensions=DIMENSIONS,
                threads=threads,
                max_batch_tokens=tokens,
                clock=clock or ManualClock(),
                watchdog_s=WATCHDOG_S,
                throughput=throughput or new_throughput(),
                report=report,
                **measured,
            )
        )
        return made[-1]

    yield batcher
    for instance in made:
        instance.close(wait_s=60)
        assert not any(thread.is_alive() for thread in instance._threads)
