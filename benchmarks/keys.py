"""Workload `keys`: the latency of a caller alone, and beside another one with ten times its load.

    python -m benchmarks --work keys [--model MODEL] [--rounds N] [--json FILE]

Each round starts the server on its own core, with an API key for each of the two callers, and runs all phases. Figures
are spreads over the rounds, ratios are within a round. drivers/keys.py generates the load on another core.
"""

import collections
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.drivers.keys import KEY_VARIABLE, TEXTS_PER_CALL
from benchmarks.measure import Pinning, driver_figures, start_driver
from benchmarks.processes import RunningProcess, port_in, started
from benchmarks.report import machine, spread

QUIET, GREEDY = "quiet", "greedy"
FACTOR = 10  # of the load of the greedy caller to that of the quiet one
GREEDY_SHARE = 1.0  # of the capacity
KINDS = {"calls": TEXTS_PER_CALL, "singles": 1}  # of the quiet caller, and the texts of a call
WARM_SECONDS, CAPACITY_SECONDS, SECONDS = 3.0, 10.0, 40.0
LOAD_START_S = 3.0  # for the greedy caller to fill its share
FLAGS = ("--cache-bytes", "0", "--no-access-log")  # texts repeat, and the cache would serve them


def create_key(name: str, file: Path, *flags: str) -> str:
    """Creates an API key for a caller in a file of keys, and returns it."""
    command = [sys.executable, "-m", "isogloss_server", "keys", "add", name, "--keys-file", str(file), *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@contextmanager
def _server(model: models.Model, pinning: Pinning) -> Iterator[tuple[RunningProcess, dict[str, str]]]:
    """Runs a server; yields it with the key of each caller."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, keys_file = Path(folder) / "port", Path(folder) / "keys"
        keys = {name: create_key(name, keys_file) for name in (QUIET, GREEDY)}
        serve = ("-m", "isogloss_server", "serve", "--port", "0", "--port-file", str(port_file))
        chosen = ("--model", f"{model.name}={model.folder}", "--keys-file", str(keys_file))
        threads = ("--inference-threads", str(pinning.threads))
        command = [sys.executable, *serve, *chosen, *threads, *FLAGS]
        with started(command, port_in(port_file), cores=pinning.server_cores) as running:
            yield running, keys


def measure(model: models.Model, pinning: Pinning) -> dict[str, Any]:
    """Returns the figures of one round, and the outcomes of the calls that failed."""
    with _server(model, pinning) as (server, keys):

        def start(caller: str, *arguments: object) -> "subprocess.Popen[str]":
            return start_driver("keys", pinning, server.address, *arguments, variables={KEY_VARIABLE: keys[caller]})

        def run(caller: str, *arguments: object) -> dict[str, Any]:
            return driver_figures(start(caller, *arguments))

        run(GREEDY, "capacity", WARM_SECONDS)
        best = run(GREEDY, "capacity", CAPACITY_SECONDS)["texts_per_s"]
        greedy_rate = GREEDY_SHARE * best
        loads = {kind: ("quiet", SECONDS, greedy_rate / FACTOR, texts) for kind, texts in KINDS.items()}
        alone = {kind: run(QUIET, *load) for kind, load in loads.items()}
        greedy_process = start(GREEDY, "greedy", greedy_rate)
        try:
            time.sleep(LOAD_START_S)
            start_s = time.monotonic()
            beside = {kind: run(QUIET, *load) for kind, load in loads.items()}
            seconds = time.monotonic() - start_s
            greedy_process.send_signal(signal.SIGTERM)
            greedy = driver_figures(greedy_process)
        finally:
            greedy_process.kill()
            greedy_process.wait()
    greedy_texts = greedy["calls"] * TEXTS_PER_CALL / (seconds + LOAD_START_S)
    return {
        "figures": {"best_texts_per_s": best, "greedy_texts_per_s": greedy_texts, **compared(alone, beside)},
        "failed": failed({**{f"{QUIET} {kind}": calls for kind, calls in beside.items()}, GREEDY: greedy}),
    }


def compared(alone: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, float]:
    """Returns the latencies of each kind of calls alone and beside the greedy caller, and their ratios."""
    figures: dict[str, float] = {}
    for kind in alone:
        for name in ("p50", "p99"):
            before_ms, after_ms = alone[kind][f"{name}_ms"], beside[kind][f"{name}_ms"]
            figures |= {f"{kind}_alone_{name}_ms": before_ms, f"{kind}_beside_{name}_ms": after_ms}
            figures[f"{kind}_{name}_ratio"] = after_ms / before_ms
        figures[f"{kind}_answered_share"] = beside[kind]["calls"] / sum(beside[kind]["outcomes"].values())
    return figures


def failed(calls: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of calls that failed, by caller, status code and reason."""
    return {
        f"{name} {code}": count
        for name, measured in calls.items()
        for code, count in measured["outcomes"].items()
        if code != "OK"
    }


def assemble(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the report of all rounds: figures as spreads, failed calls as sums."""
    all_failed: collections.Counter[str] = collections.Counter()
    for result in rounds:
        all_failed.update(result["failed"])
    return {
        "work": "keys",
        "rounds": len(rounds),
        "figures": {name: spread([result["figures"][name] for result in rounds]) for name in rounds[0]["figures"]},
        "failed": dict(all_failed.most_common()),
        "load": {"factor": FACTOR, "greedy_share": GREEDY_SHARE, "seconds": SECONDS, "flags": " ".join(FLAGS)},
        "machine": machine(),
    }


def run(model: models.Model, rounds: int, pinning: Pinning) -> dict[str, Any]:
    """Measures `rounds` rounds and returns the report."""
    return {"model": model.name, **assemble([measure(model, pinning) for _ in range(rounds)])}
