"""A server without free file descriptors."""

import contextlib
from pathlib import Path

from tests.support.process_state import Observer
from tests.support.raw_http2 import RawCaller
from tests.support.server_process import ServerProcess, python_with_limits

DESCRIPTORS = 64


def test_open_connections_are_served_without_free_descriptors(tmp_path: Path) -> None:
    """Without free descriptors, open connections are served, and new ones wait until descriptors are free."""
    with ServerProcess(python=python_with_limits(tmp_path, f"-n {DESCRIPTORS}")) as server:
        observer = Observer(server)
        before = observer.held()
        with contextlib.ExitStack() as stack:
            for _ in range(2 * DESCRIPTORS):
                stack.enter_context(RawCaller(server.address))
            observer.until(lambda _: observer.held().descriptors >= DESCRIPTORS)
            for _ in range(50):
                observer.check_answers()
        observer.check_freed(before)
        later = Observer(server)  # opens a connection and asserts that it is served
        later.close()
        observer.close()
        assert server.stop() == 0
