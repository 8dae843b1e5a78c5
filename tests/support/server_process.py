"""A real `isogloss-server` in a process of its own, for tests that go through the socket."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ServerProcess:
    """Runs `isogloss-server serve` on a free port; the lines of its stdout and stderr are kept."""

    def __init__(
        self, *flags: str, python: str | Path = sys.executable, env: Mapping[str, str | None] | None = None
    ) -> None:
        """`env` is laid over the test's own environment; None takes a variable out of it."""
        command = [python, "-m", "isogloss_server", "serve", "--port", "0", "--log-format", "json", *flags]
        variables = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",  # a reader that stumbled over what gRPC's core says would stop the server
            env=variables,
        )
        self.lines: list[str] = []
        self._queue: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._queue.put(line)
        self._queue.put("")

    def wait_for(self, message: str) -> dict[str, Any]:
        """Returns the fields of the next log line with this message."""
        while line := self._queue.get(timeout=60):
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("message") == message:
                return fields
        raise AssertionError(f"the server ended without saying {message!r}: {''.join(self.lines)}")

    @property
    def address(self) -> str:
        """Host and port, once ready."""
        if not hasattr(self, "_address"):
            self._address = str(self.wait_for("serving")["address"])
        return self._address

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Returns the exit status, once it has ended."""
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def stop(self) -> int:
        """Asks it to drain; returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
