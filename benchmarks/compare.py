"""Systems side by side: every round takes each of them once, in an order that rotates."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import environments, flops, models, report, workloads
from benchmarks.measure import LoadError, Pinning, Sample, StartError, measure, started_system
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import Workload

Vectors = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    work: Workload
    model: models.Measured
    systems: tuple[str, ...]
    rounds: int
    pinning: Pinning
    limit_s: float


class Comparison:
    """The rounds so far. A system that fails once is absent from the report, with the reason, and not tried again."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.absent: dict[str, str] = {}
        self.rounds: list[dict[str, Sample]] = []
        self.peaks: list[dict[str, float]] = []
        self.vectors: Vectors = {}

    def make_ready(self) -> None:
        """Makes environments and model files, so that no system's start waits for them."""
        for name in self._plan.systems:
            system = SYSTEMS[name]
            try:
                environments.python(system.environment)
                if system.needs_onnx:
                    self._optimise(name)
            except (subprocess.CalledProcessError, StartError) as error:
                self._drop(name, error)

    def _optimise(self, name: str) -> None:
        """Lets Infinity write the optimised graph that it leaves beside the model at its first start."""
        folder = models.with_onnx(self._plan.model)
        if name == "infinity-onnx" and not list(folder.glob("*_optimized.onnx")):
            with started_system(SYSTEMS[name], self._plan.model, self._plan.pinning):
                pass

    def take_round(self) -> None:
        """Measures every system that is left, and the chip before and after, the faster of which counts."""
        place = len(self.rounds) % len(self._plan.systems)
        order = [*self._plan.systems[place:], *self._plan.systems[:place]]
        samples: dict[str, Sample] = {}
        before = peaks(self._plan.pinning)
        for name in order:
            if name not in self.absent:
                self._take(name, samples)
        after = peaks(self._plan.pinning)
        self.peaks.append({precision: max(before[precision], after[precision]) for precision in before})
        # In the order of the table, however the rounds went.
        self.rounds.append({name: samples[name] for name in self._plan.systems if name in samples})

    def _take(self, name: str, samples: dict[str, Sample]) -> None:
        plan = self._plan
        try:
            found, vectors = measure(SYSTEMS[name], plan.model, plan.work, plan.pinning, plan.limit_s)
        except (StartError, LoadError) as error:
            self._drop(name, error)
            return
        samples[name] = found
        self.vectors.setdefault(name, vectors)
        told = f"{found['texts_per_s']:,.0f} texts/s, {found['texts_per_cpu_s']:,.0f} per CPU second"
        print(f"round {len(self.rounds) + 1}: {name}: {told}", file=sys.stderr)

    def _drop(self, name: str, error: Exception) -> None:
        print(f"{name} is absent: {error}", file=sys.stderr)
        self.absent[name] = str(error).splitlines()[-1][:300]

    def whole_rounds(self) -> list[dict[str, Sample]]:
        """Returns the rounds with those systems alone that ran in all of them."""
        return [{name: of for name, of in one.items() if name not in self.absent} for one in self.rounds]


def peaks(pinning: Pinning) -> dict[str, float]:
    """Returns the chip's own rates on the servers' cores, in GFLOP a CPU second by precision."""
    command = ["-m", "benchmarks.drivers.roofline", str(pinning.threads)]
    pinned = ["taskset", "-c", pinning.server_cores, str(environments.python(environments.OWN)), *command]
    done = subprocess.run(pinned, cwd=environments.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def run(plan: Plan) -> dict[str, Any]:
    """Returns the report of a plan.

    Raises:
        SystemExit: no system ran, or one gives other vectors than the others, so that nothing is to be compared.
    """
    comparison = Comparison(plan)
    comparison.make_ready()
    for _ in range(plan.rounds):
        comparison.take_round()
    return assemble(plan, comparison)


def assemble(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """Returns the report of what was measured.

    Raises:
        SystemExit: as of `run`.
    """
    rounds = comparison.whole_rounds()
    if not rounds or not rounds[0]:
        raise SystemExit("no system ran")
    agreement = report.agreement({name: comparison.vectors[name] for name in rounds[0]})
    if strange := {name: least for name, least in agreement.items() if least < report.LEAST_AGREEMENT}:
        raise SystemExit(f"these give other vectors than {next(iter(agreement))}: {strange}")
    return {
        "work": plan.work.name,
        "model": plan.model.name,
        "rounds": plan.rounds,
        "systems": report.figures(rounds),
        **{name: report.ratios(rounds, figure) for name, figure in report.RATIOS.items()},
        **_roofline(plan, rounds, comparison.peaks),
        "agreement": agreement,
        "absent": comparison.absent,
        "load": {"says": plan.work.says, "callers": plan.work.callers, "texts_per_call": plan.work.texts_per_call},
        "pinning": {
            "server_cores": plan.pinning.server_cores,
            "server_threads": plan.pinning.threads,
            "load_cores": plan.pinning.load_cores,
        },
        "machine": machine(),
        "says": {name: SYSTEMS[name].says for name in rounds[0]},
    }


def _roofline(plan: Plan, rounds: list[dict[str, Sample]], peaks: list[dict[str, float]]) -> Mapping[str, Any]:
    timed = list(chain.from_iterable(workloads.calls(plan.work)[1]))
    lengths = flops.lengths(plan.model.folder, timed)
    flops_per_text = flops.per_text(plan.model.folder, lengths)
    shares = report.shares(rounds, peaks, flops_per_text)
    return {
        "roofline_share": report.first_of_ours(shares),
        "roofline": {
            "gflop_per_cpu_s": {
                precision: report.spread([peak[precision] for peak in peaks]) for precision in peaks[0]
            },
            "shares": shares,
            "flops_per_text": flops_per_text,
            "tokens_per_text": report.spread(lengths) | {"mean": sum(lengths) / len(lengths)},
        },
    }


def machine() -> dict[str, object]:
    """Returns what the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
