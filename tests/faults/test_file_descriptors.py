"""File descriptors used up."""

import contextlib
from pathlib import Path

from tests.support.process_state import Observer
from tests.support.raw_http2 import RawCaller
from tests.support.server_process import ServerProcess, python_with_limits

DESCRIPTORS = 64


def test_when_descriptors_are_used_up_those_inside_are_served(tmp_path: Path) -> None:
    """With none left, who is connected is answered, health too, and who comes waits until some are free again."""
    with ServerProcess(python=python_with_limits(tmp_path, f"-n {DESCRIPTORS}")) as server:
        inside = Observer(server)
        before = inside.held()
        with contextlib.ExitStack() as stack:
            for _ in range(2 * DESCRIPTORS):
                stack.enter_context(RawCaller(server.address))
            inside.until(lambda _: inside.held().descriptors >= DESCRIPTORS)
            for _ in range(50):
                inside.check_answers()
        inside.check_freed(before)
        later = Observer(server)  # a new connection, which asserts that it is answered
        later.close()
        inside.close()
        assert server.stop() == 0
