"""Workload `cancelled`: memory that the server leaks per call that ends without a response, by version of grpcio.

    python -m benchmarks --work cancelled [--grpcio VERSION,...] [--calls N] [--json FILE]

The installed version runs two servers, isogloss-server and grpc.aio alone (drivers/bare_grpc_server.py);
other versions run the second only. Each kind of call is made in BLOCKS blocks after a warm-up block. After the warm-up
and after each block, the benchmark waits until the server is idle and reads its heaps, tasks, file descriptors and
threads. The leak per call is the slope of a line through these readings.
"""

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isogloss_server.models.model_folder import BUNDLED

from benchmarks import environments, models
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine
from benchmarks.soak_report import slope

# Kinds of calls and their descriptions; drivers/cancelled.py makes the calls.
KINDS = {
    "answered": "Embed, answered",
    "stream_answered": "EmbedStream, answered",
    "cancelled": "Embed, cancelled by its caller",
    "late": "Embed, past its deadline",
    "stream_cancelled": "EmbedStream, cancelled",
    "stream_late": "EmbedStream, past its deadline",
    "watch_cancelled": "Watch of grpc.health.v1, cancelled",
    "broken": "all three methods, connection broken with ten calls in flight",
}
OURS = "isogloss-server"
SERVERS = {
    "grpc.aio alone": "benchmarks.drivers.bare_grpc_server --port-file {port_file}",
    OURS: "benchmarks.drivers.instrumented_server serve --model {bundled} --model {name}={folder} --cache-bytes 0 "
    "--no-access-log --metrics-port 0 --port 0 --port-file {port_file}",
}
BLOCKS = 5
IDLE_LIMIT_S = 20.0
IDLE_INTERVAL_S = 0.25
INSTALLED = "installed"


def grpcio(version: str) -> dict[str, str]:
    """Installs a version of grpcio in a folder of its own and returns the environment variables that select it.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    if version == INSTALLED:
        return {}
    folder = environments.ENVIRONMENTS_FOLDER / f"grpcio-{version}"
    if not (folder / "grpc").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", str(folder), f"grpcio=={version}"], check=True)
    return {"PYTHONPATH": ":".join((str(folder), *filter(None, sys.path)))}


class InstrumentedServer:
    """A server that reports its heaps, see drivers/instrumented_server.py."""

    def __init__(self, running: RunningProcess) -> None:
        self.running = running

    def reading(self) -> dict[str, Any]:
        """Returns the heaps and resources of the server once its tasks and file descriptors no longer decrease."""
        limit_s = time.monotonic() + IDLE_LIMIT_S
        last = self._read()
        while time.monotonic() < limit_s:
            time.sleep(IDLE_INTERVAL_S)
            current = self._read()
            if current["tasks"] >= last["tasks"] and current["fds"] >= last["fds"]:
                break
            last = current
        return {
            **current,
            "anonymous_kb": self.running.anonymous_bytes() // 1024,
            "threads": self.running.threads(),
        }

    def _read(self) -> dict[str, Any]:
        stdin, stdout = self.running.process.stdin, self.running.process.stdout
        assert stdin  # noqa: S101 - started with pipes=True
        assert stdout  # noqa: S101
        stdin.write("\n")
        stdin.flush()
        report: dict[str, Any] = json.loads(stdout.readline())
        return report


@contextmanager
def running_server(version: str, server: str) -> Iterator[InstrumentedServer]:
    """Runs one of SERVERS with a version of grpcio until the block ends.

    Raises:
        StartError: The server does not start.
    """
    multilingual = models.find(models.MULTILINGUAL)
    values = {"name": multilingual.name, "folder": multilingual.folder, "bundled": BUNDLED}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        arguments = [part.format(**values, port_file=file) for part in SERVERS[server].split()]
        command = [sys.executable, "-m", *arguments]
        with started(command, port_in(file), variables=grpcio(version), cwd=environments.ROOT, pipes=True) as running:
            yield InstrumentedServer(running)


def measure(server: InstrumentedServer, kind: str, block_calls: int) -> dict[str, Any]:
    """Makes BLOCKS blocks of calls of one kind and returns the leaks per call."""
    outcomes: dict[str, int] = {}
    _block(server, kind, block_calls)
    readings = [server.reading()]
    for _ in range(BLOCKS):
        for code, count in _block(server, kind, block_calls).items():
            outcomes[code] = outcomes.get(code, 0) + count
        readings.append(server.reading())
    return {
        "description": KINDS[kind],
        "outcomes": outcomes,
        **leaks(readings, block_calls),
        "readings": readings,
    }


def _block(server: InstrumentedServer, kind: str, calls: int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.drivers.cancelled", server.running.address, kind, str(calls)]
    completed = subprocess.run(command, cwd=environments.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    outcomes: dict[str, int] = json.loads(completed.stdout)
    return outcomes


def leaks(readings: Sequence[Mapping[str, Any]], block_calls: int) -> dict[str, float]:
    """Returns the leaked bytes, blocks and objects per call, and the growth of tasks, file descriptors and threads."""
    calls = [block * block_calls for block in range(len(readings))]
    return {
        **{
            f"{name}_per_call": slope(calls, [reading[name] for reading in readings])
            for name in ("c_bytes", "python_blocks", "python_objects")
        },
        "anonymous_bytes_per_call": slope(calls, [reading["anonymous_kb"] * 1024 for reading in readings]),
        **{f"{name}_grown": readings[-1][name] - readings[0][name] for name in ("tasks", "fds", "threads")},
    }


def run(versions: Sequence[str], calls: int) -> dict[str, Any]:
    """Measures `calls` calls of each kind on each version and server, and returns the report."""
    figures: dict[str, Any] = {}
    for version, name in itertools.product(versions, SERVERS):
        if name == OURS and version != INSTALLED:
            continue
        with running_server(version, name) as server:
            title = f"{name}, grpcio {server.reading()['grpcio']}"
            figures[title] = {}
            for kind in KINDS:
                figures[title][kind] = measure(server, kind, calls // BLOCKS)
                print(f"{title}: {kind}", file=sys.stderr)
            print(table(title, figures[title]), flush=True)
    return {
        "work": "cancelled",
        "servers": figures,
        "load": {"calls": calls, "blocks": BLOCKS},
        "machine": machine(),
    }


def table(server: str, kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the figures of one server as a Markdown table."""
    memory_columns = "C heap, bytes per call | Python, blocks per call | anonymous memory, bytes per call"
    lines = [f"| {server} | {memory_columns} | tasks | file descriptors | threads |", "|---|---|---|---|---|---|---|"]
    for kind in kinds.values():
        memory = f"{kind['c_bytes_per_call']:.0f} | {kind['python_blocks_per_call']:.2f}"
        grown = f"{kind['tasks_grown']:+} | {kind['fds_grown']:+} | {kind['threads_grown']:+}"
        lines.append(f"| {kind['description']} | {memory} | {kind['anonymous_bytes_per_call']:.0f} | {grown} |")
    return "\n".join(lines)
