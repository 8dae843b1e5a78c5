"""Runs `isogloss-server` in a separate process, for tests over a real socket."""

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
    """Runs `isogloss-server serve` on a free port and keeps the lines of its stdout and stderr."""

    def __init__(
        self, *flags: str, python: str | Path = sys.executable, env: Mapping[str, str | None] | None = None
    ) -> None:
        """`env` is added to the environment of the test; None removes a variable."""
        command = [python, "-m", "isogloss_server", "serve", "--port", "0", "--log-format", "json", *flags]
        variables = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",  # a decoding error would end the reader and block the server
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
        """Returns the fields of the next log line that has this message."""
        while line := self._queue.get(timeout=60):
            fields = json.loads(line) if line.startswith("{") else {}
            if fields.get("message") == message:
                return fields
        raise AssertionError(f"the server ended without the log line {message!r}: {''.join(self.lines)}")

    @property
    def address(self) -> str:
        """Host and port; waits until the server is ready."""
        if not hasattr(self, "_address"):
            self._address = str(self.wait_for("serving")["address"])
        return self._address

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit status."""
        status = self.process.wait(timeout=60)
        self._reader.join(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def stop(self) -> int:
        """Sends SIGTERM, waits for the end of the drain, and returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def python_with_limits(folder: Path, *limits: str) -> Path:
    """Returns a program that sets each of `limits`, such as "-n 64", with `ulimit` and then runs Python."""
    program = folder / "python-limited"
    lines = ["#!/bin/sh", *(f"ulimit {limit} || exit 97" for limit in limits), f'exec "{sys.executable}" "$@"']
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program
