"""Infinity, another embedding server with the API of OpenAI, in its own process and environment."""

import os
import queue
import re
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAM = Path(__file__).parents[2] / ".venv-upstream" / "bin" / "infinity_emb"
RUNNING = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")
ANSWERED = re.compile(r"POST /embeddings.* 200")
LIMIT_S = 120.0  # between two lines of its log


class Infinity:
    """Serves a folder's model under each of `names`, on a free port or on a given one."""

    def __init__(self, folder: Path, *names: str, port: int = 0) -> None:
        assert PROGRAM.is_file(), "make test-upstream installs it"
        models = [part for name in names for part in ("--model-id", str(folder), "--served-model-name", name)]
        options = "--device cpu --engine torch --no-bettertransformer --no-model-warmup --log-level info"
        command = [PROGRAM, "v2", *models, "--host", "127.0.0.1", "--port", str(port), *options.split()]
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=os.environ | quiet,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Returns the match of the next line of its log that matches."""
        lines = []
        while line := self._lines.get(timeout=LIMIT_S):
            if match := pattern.search(line):
                return match
            lines.append(line)
        raise AssertionError(f"Infinity ended without {pattern.pattern!r}: {''.join(lines)}")

    @property
    def port(self) -> int:
        """The port that it listens on; waits until it does."""
        if not hasattr(self, "_port"):
            self._port = int(self.wait_for(RUNNING)[1])
        return self._port

    def source(self, model: str) -> str:
        """Returns the value of the server's --model for one of its models."""
        return f"openai:{model}@http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._process.kill()
        self._process.wait(timeout=LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._reader.join(timeout=LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
