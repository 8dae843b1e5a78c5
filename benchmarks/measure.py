"""One system under one load: started, warmed, timed, stopped."""

import http.client
import json
import select
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import environments, models, workloads
from benchmarks.drivers.driver import Outcome
from benchmarks.processes import Running, StartError, port_in, started
from benchmarks.systems import VARIABLES, Kind, System
from benchmarks.workloads import Workload

Sample = dict[str, float]


class LoadError(Exception):
    """No call of a load was answered; the message is the first call's error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinning:
    """Where things run: cores as taskset takes them, such as "1" or "0,1"."""

    server_cores: str = "1"
    load_cores: str = "0"

    @property
    def threads(self) -> int:
        """How many threads a system is given: one for each of its cores."""
        return sum(_width(part) for part in self.server_cores.split(","))

    def variables(self) -> dict[str, str]:
        """Returns the environment variables that every system is given."""
        return {name: value.format(threads=self.threads) for name, value in VARIABLES.items()}


def _width(part: str) -> int:
    first, _, last = part.partition("-")
    return int(last or first) - int(first) + 1


class Lines:
    """The runner's side of driver.py."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Makes calls ready."""
        self._ask({"prepare": calls, "callers": callers})

    def run(self, limit_s: float) -> Outcome:
        """Returns the outcome of the calls that were made ready."""
        return Outcome(**self._ask({"run": limit_s}))

    def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        found: list[list[float]] = self._ask({"vectors": list(texts)})["vectors"]
        return found

    def _ask(self, order: Mapping[str, object]) -> dict[str, Any]:
        sender, receiver = self._process.stdin, self._process.stdout
        assert sender  # noqa: S101 - started with talks=True
        assert receiver  # noqa: S101
        try:
            sender.write(json.dumps(order) + "\n")
            sender.flush()
        except BrokenPipeError as error:
            raise LoadError("the process that makes the calls ended") from error
        for line in receiver:
            if line.startswith("{"):  # libraries print things of their own
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise LoadError("the process that makes the calls ended")


def said_ready(process: "subprocess.Popen[str]") -> str | None:
    """Returns "" once a driver has written that it is ready."""
    assert process.stdout  # noqa: S101 - started with talks=True
    readable, _, _ = select.select([process.stdout], [], [], 0.05)
    return "" if readable and process.stdout.readline().startswith('{"ready"') else None


def _healthy(port: int) -> str | None:
    """Returns the address once /health answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return f"127.0.0.1:{port}" if connection.getresponse().status == http.client.OK else None
    except OSError:
        return None  # not yet
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started_system(system: System, model: models.Measured, pinning: Pinning) -> Iterator[Running]:
    """Runs a system on its cores until the block ends.

    Raises:
        StartError: it does not start.
    """
    python = environments.python(system.environment)
    folder = models.with_onnx(model) if system.needs_onnx else model.folder
    with tempfile.TemporaryDirectory() as scratch:
        known = {
            "model": folder,
            "name": model.name,
            "threads": pinning.threads,
            "port": _free_port(),
            "port_file": Path(scratch) / "port",
        }
        ready = {
            Kind.SERVICE: port_in(Path(scratch) / "port"),
            Kind.HTTP: lambda _process: _healthy(int(str(known["port"]))),
            Kind.LIBRARY: said_ready,
        }[system.kind]
        command = [str(python), *(part.format(**known) for part in system.command)]
        with started(
            command,
            ready,
            cores=pinning.server_cores,
            variables=pinning.variables(),
            folder=environments.ROOT,
            talks=system.kind is Kind.LIBRARY,
        ) as running:
            yield running


@contextmanager
def _driver(system: System, running: Running, work: Workload, pinning: Pinning) -> Iterator[Lines]:
    if system.kind is Kind.LIBRARY:
        yield Lines(running.process)
        return
    protocol = (system.streamed_protocol if work.streamed else "") or system.protocol
    command = [str(environments.python("load")), "-m", "benchmarks.drivers.load_generator", protocol, running.address]
    with started(command, said_ready, cores=pinning.load_cores, folder=environments.ROOT, talks=True) as generator:
        yield Lines(generator.process)


def measure(
    system: System, model: models.Measured, work: Workload, pinning: Pinning, limit_s: float
) -> tuple[Sample, list[list[float]]]:
    """Returns one round's figures of a system, and its vectors of workloads.probes().

    Raises:
        StartError: it does not start.
        LoadError: it answers no call.
    """
    warm, timed = workloads.calls(work)
    with started_system(system, model, pinning) as running, _driver(system, running, work, pinning) as driver:
        vectors = driver.vectors(workloads.probes())
        driver.prepare(warm, work.callers)
        driver.run(limit_s)
        driver.prepare(timed, work.callers)
        before_s = running.cpu_s()
        outcome = driver.run(limit_s)
        cpu_s = running.cpu_s() - before_s
        if not outcome.texts:
            raise LoadError(outcome.first_error)
        return sample(outcome, cpu_s, running), vectors


def sample(outcome: Outcome, cpu_s: float, running: Running) -> Sample:
    """Returns the figures of one outcome; memory as it is now, in MB of 10^6 bytes."""
    return {
        "texts_per_s": outcome.texts / outcome.wall_s,
        "texts_per_cpu_s": outcome.texts / cpu_s,
        "p50_ms": statistics.median(outcome.latencies_ms),
        "p99_ms": percentile(outcome.latencies_ms, 99),
        "rss_mb": running.status("VmRSS") * 1024 / 1e6,
        "startup_s": running.started_s,
        "errors": outcome.errors,
        "anonymous_mb": running.status("RssAnon") * 1024 / 1e6,
        "peak_rss_mb": running.status("VmHWM") * 1024 / 1e6,
        "texts": outcome.texts,
        "wall_s": outcome.wall_s,
        "cpu_s": cpu_s,
        "cores_busy": cpu_s / outcome.wall_s,
    }


def percentile(values: Sequence[float], share: int) -> float:
    """Returns the least value that at least `share` percent of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]


__all__ = [
    "Lines",
    "LoadError",
    "Pinning",
    "Sample",
    "StartError",
    "measure",
    "percentile",
    "said_ready",
    "sample",
    "started_system",
]
