"""Compares systems: each round measures every system once, in an order that rotates."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from benchmarks import environments, models, report, workloads
from benchmarks.drivers import roofline
from benchmarks.measure import LoadError, Pinning, Sample, measure, running_system
from benchmarks.processes import StartError
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import Workload

Vectors = dict[str, list[list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The workload, model, systems and rounds of one comparison."""

    workload: Workload
    model: models.Model
    systems: tuple[str, ...]
    rounds: int
    pinning: Pinning
    limit_s: float


class Comparison:
    """Collects the samples of all rounds; a system that fails once is excluded from then on, with the reason."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.absent: dict[str, str] = {}
        self.rounds: list[dict[str, Sample]] = []
        self.peaks: list[dict[str, float]] = []
        self.vectors: Vectors = {}

    def prepare(self) -> None:
        """Creates environments and model files, so that they do not count as start-up time."""
        for name in self._plan.systems:
            system = SYSTEMS[name]
            try:
                environments.python(system.environment)
                if system.needs_onnx:
                    self._optimize_onnx(name)
            except (subprocess.CalledProcessError, StartError) as error:
                self._exclude(name, error)

    def _optimize_onnx(self, name: str) -> None:
        """Starts Infinity once, because its first start writes an optimized graph to the model folder."""
        folder = models.with_onnx(self._plan.model)
        if name == "infinity-onnx" and not list(folder.glob("*_optimized.onnx")):
            with running_system(SYSTEMS[name], self._plan.model, self._plan.pinning):
                pass

    def measure_round(self) -> None:
        """Measures every remaining system, and the peak rate before and after; the higher one counts."""
        place = len(self.rounds) % len(self._plan.systems)
        order = [*self._plan.systems[place:], *self._plan.systems[:place]]
        samples: dict[str, Sample] = {}
        before = peaks(self._plan.pinning)
        for name in order:
            if name not in self.absent:
                self._measure(name, samples)
        after = peaks(self._plan.pinning)
        self.peaks.append({precision: max(before[precision], after[precision]) for precision in before})
        # The report lists the systems in the order of the plan.
        self.rounds.append({name: samples[name] for name in self._plan.systems if name in samples})

    def _measure(self, name: str, samples: dict[str, Sample]) -> None:
        plan = self._plan
        try:
            sample, vectors = measure(SYSTEMS[name], plan.model, plan.workload, plan.pinning, plan.limit_s)
        except (StartError, LoadError) as error:
            self._exclude(name, error)
            return
        samples[name] = sample
        self.vectors.setdefault(name, vectors)
        speed = f"{sample['texts_per_s']:,.0f} texts/s, {sample['texts_per_cpu_s']:,.0f} per CPU second"
        print(f"round {len(self.rounds) + 1}: {name}: {speed}", file=sys.stderr)

    def _exclude(self, name: str, error: Exception) -> None:
        print(f"{name} is absent: {error}", file=sys.stderr)
        self.absent[name] = str(error).splitlines()[-1][:300]

    def complete_rounds(self) -> list[dict[str, Sample]]:
        """Returns the samples of the systems that ran in every round."""
        return [
            {name: sample for name, sample in samples.items() if name not in self.absent} for samples in self.rounds
        ]


def peaks(pinning: Pinning) -> dict[str, float]:
    """Returns the peak rates of the server cores in GFLOP per CPU second by precision."""
    command = ["-m", "benchmarks.drivers.roofline", str(pinning.threads)]
    pinned = ["taskset", "-c", pinning.server_cores, str(environments.python(environments.OWN)), *command]
    completed = subprocess.run(pinned, cwd=environments.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    rates: dict[str, float] = json.loads(completed.stdout)
    return rates


def run(plan: Plan) -> dict[str, Any]:
    """Measures all rounds and returns the report.

    Raises:
        SystemExit: No system ran, or the vectors of a system differ from those of the others.
    """
    comparison = Comparison(plan)
    comparison.prepare()
    for _ in range(plan.rounds):
        comparison.measure_round()
    return assemble(plan, comparison)


def assemble(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """Returns the report of a comparison.

    Raises:
        SystemExit: No system ran, or the vectors of a system differ from those of the others.
    """
    rounds = comparison.complete_rounds()
    if not rounds or not rounds[0]:
        raise SystemExit("no system ran")
    agreement = report.agreement({name: comparison.vectors[name] for name in rounds[0]})
    if different := {name: cosine for name, cosine in agreement.items() if cosine < report.MIN_AGREEMENT}:
        raise SystemExit(f"the vectors of these systems differ from those of {next(iter(agreement))}: {different}")
    return {
        "work": plan.workload.name,
        "model": plan.model.name,
        "rounds": plan.rounds,
        "systems": report.figures(rounds),
        **{name: ratios for name, figure in report.RATIOS.items() if (ratios := report.ratios(rounds, figure))},
        **_roofline(plan, rounds, comparison.peaks),
        "agreement": agreement,
        "absent": comparison.absent,
        "load": {
            "description": plan.workload.description,
            "callers": plan.workload.callers,
            "texts_per_call": plan.workload.texts_per_call,
        },
        "pinning": {
            "server_cores": plan.pinning.server_cores,
            "server_threads": plan.pinning.threads,
            "load_cores": plan.pinning.load_cores,
        },
        "machine": report.machine(),
        "descriptions": {name: SYSTEMS[name].description for name in rounds[0]},
    }


def _roofline(plan: Plan, rounds: list[dict[str, Sample]], peaks: list[dict[str, float]]) -> Mapping[str, Any]:
    measured = list(chain.from_iterable(workloads.calls(plan.workload)[1]))
    lengths = roofline.token_counts(plan.model.folder, measured)
    flops_per_text = roofline.mean_flops(plan.model.folder, lengths)
    shares = report.shares(rounds, peaks, flops_per_text)
    return {
        "roofline_share": report.isogloss_share(shares),
        "roofline": {
            "gflop_per_cpu_s": {
                precision: report.spread([peak[precision] for peak in peaks]) for precision in peaks[0]
            },
            "shares": shares,
            "flops_per_text": flops_per_text,
            "tokens_per_text": report.spread(lengths) | {"mean": sum(lengths) / len(lengths)},
        },
    }
