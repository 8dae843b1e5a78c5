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
