"""A server that the tests of faults share, each of which leaves it as it was."""

from collections.abc import Iterator

import pytest

from tests.support.process_state import Observer
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="session")
def observer(server: ServerProcess) -> Iterator[Observer]:
    """Looks at the server that all tests share."""
    observer = Observer(server)
    yield observer
    observer.close()


@pytest.fixture
def untraced() -> Iterator[None]:
    """Pauses the measurement of coverage: its tracer loses an exception that is raised in a thread from outside."""
    from coverage import Coverage

    measurement = Coverage.current()
    if measurement is not None:
        measurement.stop()
    yield
    if measurement is not None:
        measurement.start()
