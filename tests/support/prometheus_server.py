"""A real Prometheus, and promtool, which checks rules and queries."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

INSTALLED = Path(__file__).parents[2] / ".prometheus" / "usr" / "bin"  # where `make test-prometheus` unpacks it


def binary(name: str) -> Path | None:
    """Returns a program of Prometheus, from PATH or from where `make test-prometheus` put it."""
    found = shutil.which(name)
    own = INSTALLED / name
    return Path(found) if found else own if own.exists() else None


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs promtool with a text on its stdin."""
    program = binary("promtool")
    assert program is not None
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False, timeout=100)


class PrometheusServer:
    """Runs Prometheus with a configuration on a free port."""

    def __init__(self, config: Path, data: Path) -> None:
        """Starts it; `data` is an empty folder."""
        program = binary("prometheus")
        assert program is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        flags = {"config.file": config, "storage.tsdb.path": data, "web.listen-address": self._address}
        self._process = subprocess.Popen(
            [program, *(f"--{name}={value}" for name, value in flags.items())],
            stderr=subprocess.PIPE,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        assert self._process.stderr is not None
        self._log: list[bytes] = []
        for line in self._process.stderr:
            self._log.append(line)
            if b"Server is ready to receive web requests" in line:
                return
        raise AssertionError(b"".join(self._log).decode())

    def get(self, path: str, **parameters: str) -> Any:
        """Returns the data of a request to its API."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Returns the samples of an instant query."""
        samples: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return samples

    def query_until(self, expression: str) -> list[dict[str, Any]]:
        """Returns the samples of a query as soon as there are any."""
        for _ in range(100_000):
            if samples := self.query(expression):
                return samples
        raise AssertionError(f"no samples of {expression}")

    def evaluated_rules(self) -> list[dict[str, Any]]:
        """Returns all rules as soon as each has been evaluated."""
        for _ in range(100_000):
            rules = [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
            if all(rule["health"] != "unknown" for rule in rules):
                return rules
        raise AssertionError("some rules are never evaluated")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=60)
