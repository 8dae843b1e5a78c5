"""The observer of the server that the tests of injected faults share."""

from collections.abc import Iterator

import pytest

from tests.support.process_state import Observer
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="session")
def observer(server: ServerProcess) -> Iterator[Observer]:
    """Reads the resources and the health of the shared server."""
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
