"""Workload `mixed`: queries of eight callers beside large calls, comparisons, and a hostile caller of each kind.

    python -m benchmarks --work mixed [--model MODEL] [--rounds N] [--json FILE]

Each round starts the server on its own core and runs all phases. Figures are spreads over the rounds, ratios are within
a round. drivers/mixed.py generates the load on another core, in processes of a lower priority than the measuring one.
"""

import collections
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isogloss_server.models.model_folder import BUNDLED

from benchmarks import models
from benchmarks.measure import Pinning, driver_figures, start_driver
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine, spread

WARM_SECONDS, QUIET_SECONDS, MIXED_SECONDS = 10.0, 10.0, 30.0
AFTER_SECONDS = 15.0  # for the memory to return
LOAD_START_S = 3.0  # for the load generators to start their calls
IDLE_SHARE, IDLE_LIMIT_S = 0.1, 60.0  # share of a core below which the server counts as idle
STOP_LIMIT_S = 60.0
FLAGS = ("--cache-bytes", "0", "--metrics-port", "0")  # texts repeat, and the cache would serve them
LOADS = ("work", "hostile")
LOAD_NICE = 10  # so that the load delays the measuring process, on the same core, by little


@contextmanager
def _server(model: models.Model, pinning: Pinning) -> Iterator[RunningProcess]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "port"
        serve = ("-m", "isogloss_server", "serve", "--port", "0", "--port-file", str(file))
        chosen = ("--model", f"{model.name}={model.folder}", "--model", BUNDLED)
        command = [sys.executable, *serve, *chosen, *FLAGS]
        with started(command, port_in(file), cores=pinning.server_cores) as running:
            yield running


@contextmanager
def _load(server: RunningProcess, pinning: Pinning, *roles: str) -> Iterator[dict[str, dict[str, int]]]:
    """Runs load generators during the block; yields a dictionary that then has the outcomes by kind of call."""
    outcomes: dict[str, dict[str, int]] = {}
    processes = [start_driver("mixed", pinning, server.address, role, nice=LOAD_NICE) for role in roles]
    try:
        time.sleep(LOAD_START_S)
        yield outcomes
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            outcomes.update(driver_figures(process))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _queries(server: RunningProcess, pinning: Pinning, seconds: float) -> dict[str, Any]:
    return driver_figures(start_driver("mixed", pinning, server.address, "queries", seconds))


def _wait_until_idle(server: RunningProcess) -> None:
    """Waits until the server has finished the work of callers that have left."""
    end_s = time.monotonic() + IDLE_LIMIT_S
    before_s = server.cpu_s()
    while time.monotonic() < end_s:
        time.sleep(1.0)
        now_s = server.cpu_s()
        if now_s - before_s < IDLE_SHARE:
            return
        before_s = now_s
    raise SystemExit(f"the server is not idle {IDLE_LIMIT_S:.0f} s after the load")


def measure(model: models.Model, pinning: Pinning) -> dict[str, Any]:
    """Returns the figures of one round, the queries and probes that failed, and the outcomes of the load."""
    with _server(model, pinning) as server:
        started_mb = server.memory_mb()["resident"]
        with _load(server, pinning, "work"):
            _queries(server, pinning, WARM_SECONDS)
        _wait_until_idle(server)
        quiet = _queries(server, pinning, QUIET_SECONDS)
        before_mb = server.memory_mb()
        with server.peak_memory() as peak_mb, _load(server, pinning, *LOADS) as outcomes:
            mixed = _queries(server, pinning, MIXED_SECONDS)
        time.sleep(AFTER_SECONDS)
        after_mb = server.memory_mb()
    return {
        "figures": {"memory_started_mb": started_mb, **compared(quiet, mixed), **grown(before_mb, peak_mb, after_mb)},
        "refused": {f"{name} {code}": count for name in mixed for code, count in failed(mixed[name]).items()},
        "outcomes": outcomes,
    }


def failed(calls: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of calls that failed by status code and reason."""
    return {code: count for code, count in calls["outcomes"].items() if code != "OK"}


def _answered_share(calls: Mapping[str, Any]) -> float:
    return float(calls["calls"] / sum(calls["outcomes"].values()))


def compared(quiet: Mapping[str, Any], mixed: Mapping[str, Any]) -> dict[str, float]:
    """Returns the figures of queries and Health in the mixed phase, and their ratios to the quiet phase."""
    return {
        "answered_share": _answered_share(mixed["queries"]),
        "quiet_answered_share": _answered_share(quiet["queries"]),
        "queries": sum(mixed["queries"]["outcomes"].values()),
        "quiet_p50_ms": quiet["queries"]["p50_ms"],
        "quiet_p99_ms": quiet["queries"]["p99_ms"],
        "p50_ms": mixed["queries"]["p50_ms"],
        "p99_ms": mixed["queries"]["p99_ms"],
        "p99_ratio": mixed["queries"]["p99_ms"] / quiet["queries"]["p99_ms"],
        "health_answered_share": _answered_share(mixed["health"]),
        "quiet_health_max_ms": quiet["health"]["max_ms"],
        "health_p50_ms": mixed["health"]["p50_ms"],
        "health_p99_ms": mixed["health"]["p99_ms"],
        "health_max_ms": mixed["health"]["max_ms"],
        "health_max_ratio": mixed["health"]["max_ms"] / quiet["health"]["max_ms"],
    }


def grown(
    before_mb: Mapping[str, float], peak_mb: Mapping[str, float], after_mb: Mapping[str, float]
) -> dict[str, float]:
    """Returns the memory before, at most and after the mixed phase by kind, and the ratio of after to before."""
    figures = {}
    for kind, mb in before_mb.items():
        figures[f"{kind}_before_mb"], figures[f"{kind}_greatest_mb"] = mb, peak_mb[kind]
        figures[f"{kind}_after_mb"], figures[f"{kind}_after_ratio"] = after_mb[kind], after_mb[kind] / mb
    return figures


def assemble(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the report of all rounds: figures as spreads, failed and other calls as sums."""
    refused: collections.Counter[str] = collections.Counter()
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in rounds:
        refused.update(result["refused"])
        for kind, counts in result["outcomes"].items():
            outcomes[kind].update(counts)
    names = rounds[0]["figures"]
    return {
        "work": "mixed",
        "rounds": len(rounds),
        "figures": {name: spread([result["figures"][name] for result in rounds]) for name in names},
        "refused": dict(refused.most_common()),
        "outcomes": {kind: dict(counts.most_common()) for kind, counts in outcomes.items()},
        "load": {"quiet_seconds": QUIET_SECONDS, "mixed_seconds": MIXED_SECONDS, "flags": " ".join(FLAGS)},
        "machine": machine(),
    }


def run(model: models.Model, rounds: int, pinning: Pinning) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report."""
    return {"model": model.name, **assemble([measure(model, pinning) for _ in range(rounds)])}
