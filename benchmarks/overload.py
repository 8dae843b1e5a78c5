"""Workload `overload`: ten times the capacity of the server, and interactive calls during saturating bulk load.

    python -m benchmarks --work overload [--model MODEL] [--rounds N] [--json FILE]

Each round starts the server on its own core and runs all phases. Figures are medians over the rounds, ratios are within
a round. drivers/overload.py generates the load on another core.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import environments, models
from benchmarks.measure import Pinning
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine, spread

FACTOR = 10
SECONDS = 10.0
WARM_SECONDS = 3.0
FLAGS = ("--cache-bytes", "0", "--no-access-log")  # texts repeat, and the cache would serve them


@contextmanager
def _server(model: models.Model, pinning: Pinning) -> Iterator[RunningProcess]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        serve = ("-m", "isogloss_server", "serve", "--model", f"{model.name}={model.folder}")
        place = ("--port", "0", "--port-file", str(file), "--inference-threads", str(pinning.threads))
        command = [str(environments.python(environments.OWN)), *serve, *place, *FLAGS]
        with started(command, port_in(file), cores=pinning.server_cores, variables=pinning.variables()) as running:
            yield running


def _phase(server: RunningProcess, pinning: Pinning, name: str, seconds: float, *numbers: float) -> dict[str, Any]:
    load = [str(environments.python("load")), "-m", "benchmarks.drivers.overload", server.address, name]
    command = ["taskset", "-c", pinning.load_cores, *load, *map(str, (seconds, *numbers))]
    completed = subprocess.run(command, cwd=environments.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(completed.stdout)
    return figures


def measure(model: models.Model, pinning: Pinning) -> dict[str, float]:
    """Returns the figures of one round."""
    with _server(model, pinning) as server:
        _phase(server, pinning, "capacity", WARM_SECONDS)
        quiet = _phase(server, pinning, "quiet", SECONDS)["interactive"]
        best = _phase(server, pinning, "capacity", SECONDS)
        before_mb = server.resident_bytes() / 1024**2
        with server.peak_memory() as peak_mb:
            over = _phase(server, pinning, "overload", SECONDS, FACTOR * best["calls_per_s"])
        beside = _phase(server, pinning, "beside-bulk", SECONDS)
    outcomes = over["outcomes"]
    return {
        "best_texts_per_s": best["texts_per_s"],
        "overload_texts_per_s": over["texts_per_s"],
        "overload_share_of_best": over["texts_per_s"] / best["texts_per_s"],
        "offered_times_best": over["offered_calls_per_s"] / best["calls_per_s"],
        "answered_calls": outcomes.get("OK", 0),
        "refused_calls": outcomes.get("RESOURCE_EXHAUSTED", 0),
        "late_calls": outcomes.get("DEADLINE_EXCEEDED", 0),
        "other_calls": sum(outcomes.values())
        - sum(outcomes.get(code, 0) for code in ("OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")),
        "answered_p50_ms": over["answered"]["p50_ms"],
        "answered_p99_ms": over["answered"]["p99_ms"],
        "health_p99_ms": over["health"]["p99_ms"],
        "health_max_ms": over["health"]["max_ms"],
        "memory_before_mb": before_mb,
        "memory_greatest_mb": peak_mb["resident"],
        "quiet_p50_ms": quiet["p50_ms"],
        "quiet_p99_ms": quiet["p99_ms"],
        "beside_bulk_p50_ms": beside["interactive"]["p50_ms"],
        "beside_bulk_p99_ms": beside["interactive"]["p99_ms"],
        "beside_bulk_p99_ratio": beside["interactive"]["p99_ms"] / quiet["p99_ms"],
        "bulk_share_of_best": beside["bulk"]["texts_per_s"] / best["texts_per_s"],
        "bulk_refused_calls": beside["bulk"]["failed"],
    }


def assemble(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Returns the report of all rounds."""
    return {
        "work": "overload",
        "rounds": len(rounds),
        "figures": {name: spread([figures[name] for figures in rounds]) for name in rounds[0]},
        "load": {"factor": FACTOR, "seconds": SECONDS, "flags": " ".join(FLAGS)},
        "machine": machine(),
    }


def run(model: models.Model, rounds: int, pinning: Pinning) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report."""
    return {"model": model.name, **assemble([measure(model, pinning) for _ in range(rounds)])}
