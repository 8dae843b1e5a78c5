"""Measures one system under one workload: starts it, warms it up, times it, stops it."""

import http.client
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments, models, workloads
from benchmarks.drivers.driver import RunResult
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.systems import VARIABLES, Kind, System
from benchmarks.workloads import Workload

Sample = dict[str, float]


class LoadError(Exception):
    """No call of a workload succeeded; the message is the error of the first call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinning:
    """The cores of the system and of the load generator, in the syntax of taskset, such as "1" or "0,1"."""

    server_cores: str = "1"
    load_cores: str = "0"

    @property
    def threads(self) -> int:
        """The number of threads of a system: one for each of its cores."""
        return sum(_width(part) for part in self.server_cores.split(","))

    def variables(self) -> dict[str, str]:
        """Returns the environment variables of every system."""
        return {name: value.format(threads=self.threads) for name, value in VARIABLES.items()}


def _width(part: str) -> int:
    first, _, last = part.partition("-")
    return int(last or first) - int(first) + 1


class DriverClient:
    """Sends the commands of drivers/driver.py to a driver process and reads its responses."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Builds the requests of the next run."""
        self.request({"prepare": calls, "callers": callers})

    def run(self, limit_s: float) -> RunResult:
        """Sends the prepared requests."""
        return RunResult(**self.request({"run": limit_s}))

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        rows: list[list[float]] = self.request({"vectors": list(texts)})["vectors"]
        return rows

    def request(self, command: Mapping[str, object]) -> dict[str, Any]:
        """Sends a command, and returns the response."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin  # noqa: S101 - started with pipes=True
        assert stdout  # noqa: S101
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise LoadError("the driver process ended") from error
        for line in stdout:
            if line.startswith("{"):  # libraries print other lines
                response: dict[str, Any] = json.loads(line)
                return response
        raise LoadError("the driver process ended")


def driver_ready(process: "subprocess.Popen[str]") -> str | None:
    """Returns "" once a driver has written that it is ready; a `find_address` of processes.started."""
    assert process.stdout  # noqa: S101 - started with pipes=True
    readable, _, _ = select.select([process.stdout], [], [], 0.05)
    return "" if readable and process.stdout.readline().startswith('{"ready"') else None


def _healthy(port: int) -> str | None:
    """Returns the address if GET /health succeeds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return f"127.0.0.1:{port}" if connection.getresponse().status == http.client.OK else None
    except OSError:
        return None  # not listening yet
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_system(system: System, model: models.Model, pinning: Pinning) -> Iterator[RunningProcess]:
    """Runs a system on its cores until the block ends.

    Raises:
        StartError: The system does not start.
    """
    python = environments.python(system.environment)
    folder = models.with_onnx(model) if system.needs_onnx else model.folder
    with tempfile.TemporaryDirectory() as scratch:
        values = {
            "model": folder,
            "name": model.name,
            "threads": pinning.threads,
            "port": _free_port(),
            "port_file": Path(scratch) / "port",
        }
        find_address = {
            Kind.SERVICE: port_in(Path(scratch) / "port"),
            Kind.HTTP: lambda _process: _healthy(int(str(values["port"]))),
            Kind.LIBRARY: driver_ready,
        }[system.kind]
        command = [str(python), *(part.format(**values) for part in system.command)]
        with started(
            command,
            find_address,
            cores=pinning.server_cores,
            variables=pinning.variables(),
            cwd=environments.ROOT,
            pipes=system.kind is Kind.LIBRARY,
        ) as running:
            yield running


@contextmanager
def _driver(system: System, running: RunningProcess, workload: Workload, pinning: Pinning) -> Iterator[DriverClient]:
    if system.kind is Kind.LIBRARY:
        yield DriverClient(running.process)
        return
    protocol = (system.streamed_protocol if workload.streamed else "") or system.protocol
    with load_generator(protocol, running.address, pinning) as driver:
        yield driver


def start_driver(
    name: str, pinning: Pinning, *arguments: object, nice: int = 0, variables: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Starts a module of drivers/ on the cores of the load, with pipes to its standard input and output."""
    driver = (sys.executable, "-m", f"benchmarks.drivers.{name}", *map(str, arguments))
    command = ["taskset", "-c", pinning.load_cores, "nice", "-n", str(nice), *driver]
    pipe, environment = subprocess.PIPE, os.environ | dict(variables or {})
    return subprocess.Popen(command, cwd=environments.ROOT, stdin=pipe, stdout=pipe, text=True, env=environment)


def driver_figures(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Waits for the end of a driver; returns the JSON object that it has printed."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a load generator ended with status {process.returncode}")
    figures: dict[str, Any] = json.loads(output)
    return figures


@contextmanager
def load_generator(protocol: str, address: str, pinning: Pinning) -> Iterator[DriverClient]:
    """Runs the load generator on its cores until the block ends.

    Raises:
        StartError: The load generator does not start.
    """
    command = [str(environments.python("load")), "-m", "benchmarks.drivers.load_generator", protocol, address]
    with started(command, driver_ready, cores=pinning.load_cores, cwd=environments.ROOT, pipes=True) as running:
        yield DriverClient(running.process)


def measure(
    system: System, model: models.Model, workload: Workload, pinning: Pinning, limit_s: float
) -> tuple[Sample, list[list[float]]]:
    """Returns the figures of a system in one round, and its vectors of workloads.probes().

    Raises:
        StartError: The system does not start.
        LoadError: No call succeeded.
    """
    warm, measured = workloads.calls(workload)
    with running_system(system, model, pinning) as running, _driver(system, running, workload, pinning) as driver:
        vectors = driver.vectors(workloads.probes())
        driver.prepare(warm, workload.callers)
        driver.run(limit_s)
        driver.prepare(measured, workload.callers)
        before_s = running.cpu_s()
        result = driver.run(limit_s)
        cpu_s = running.cpu_s() - before_s
        if not result.texts:
            raise LoadError(result.first_error)
        return sample(workload, result, cpu_s, running), vectors


def sample(workload: Workload, result: RunResult, cpu_s: float, running: RunningProcess) -> Sample:
    """Returns the figures of one run, with the current memory of the system in MB of 10^6 bytes."""
    latencies = {}
    if workload.measures_latency:
        latencies["p50_ms"] = statistics.median(result.latencies_ms)
        latencies["p99_ms"] = percentile(result.latencies_ms, 99)
    return {
        "texts_per_s": result.texts / result.wall_s,
        "texts_per_cpu_s": result.texts / cpu_s,
        **latencies,
        "rss_mb": running.resident_bytes() / 1e6,
        "startup_s": running.started_s,
        "errors": result.errors,
        "anonymous_mb": running.anonymous_bytes() / 1e6,
        "texts": result.texts,
        "wall_s": result.wall_s,
        "cpu_s": cpu_s,
        "cores_busy": cpu_s / result.wall_s,
    }


def percentile(values: Sequence[float], share: int) -> float:
    """Returns the smallest value that at least `share` percent of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]
