"""Benchmarks of isogloss: comparisons with other systems on the same machine, and workloads of the service alone.

python -m benchmarks --work single|batch|bulk|trickle [--model MODEL] [--systems NAME,...] [--rounds N]
                     [--cores CORES] [--load-cores CORES] [--limit-s S] [--json FILE]
python -m benchmarks --work bundled|cache|provider [--rounds N] [--json FILE]
python -m benchmarks --work overload|mixed|keys|overhead [--model MODEL] [--rounds N] [--json FILE]
python -m benchmarks --work soak [--minutes N] [--json FILE]
python -m benchmarks --work cancelled [--grpcio VERSION,...] [--calls N] [--json FILE]
python -m benchmarks --plot FILE.svg
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    bundled,
    cache,
    cancelled,
    compare,
    environments,
    keys,
    mixed,
    models,
    overhead,
    overload,
    provider,
    soak,
)
from benchmarks.measure import Pinning
from benchmarks.report import table
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Standalone:
    """A workload of the service alone, or with references of its own."""

    description: str
    run: Callable[[argparse.Namespace, Pinning], dict[str, Any]]


STANDALONE = {
    "bundled": Standalone(
        "the bundled model, compared with an echo server and its tokenizer (default)",
        lambda args, _: bundled.run(args.rounds or 7),
    ),
    "cache": Standalone("the cost of hits and misses of the cache", lambda args, _: cache.run(args.rounds or 200)),
    "provider": Standalone(
        "a thousand texts through a provider's API, compared with its SDK",
        lambda args, pinning: provider.run(args.rounds or 5, pinning),
    ),
    "overload": Standalone(
        "ten times the capacity of the server, and queries during bulk load",
        lambda args, pinning: overload.run(models.find(args.model), args.rounds or 3, pinning),
    ),
    "mixed": Standalone(
        "queries beside large calls, comparisons and hostile callers",
        lambda args, pinning: mixed.run(models.find(args.model), args.rounds or 3, pinning),
    ),
    "keys": Standalone(
        "a caller with an API key, beside another one with ten times its load",
        lambda args, pinning: keys.run(models.find(args.model), args.rounds or 3, pinning),
    ),
    "overhead": Standalone(
        "the processor time of TLS, keys, quotas, metrics, traces and the log of calls",
        lambda args, pinning: overhead.run(models.find(args.model), args.rounds or 20, pinning),
    ),
    "soak": Standalone(
        "all kinds of calls for minutes; exit status 1 if a condition fails",
        lambda args, _: soak.run(models.find(models.MULTILINGUAL), args.minutes),
    ),
    "cancelled": Standalone(
        "memory leaked by calls that end without a response",
        lambda args, _: cancelled.run(args.grpcio.split(","), args.calls),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    descriptions = [f"{name}: {workload.description}" for name, workload in (WORKLOADS | STANDALONE).items()]
    result.add_argument("--work", choices=[*WORKLOADS, *STANDALONE], default="bundled", help="; ".join(descriptions))
    result.add_argument(
        "--systems",
        type=_systems,
        default=list(SYSTEMS),
        help=f"names separated by commas, of {', '.join(SYSTEMS)} (default: all)",
    )
    result.add_argument("--model", default=models.MINILM, help=f"{models.MINILM}, {models.MULTILINGUAL} or a folder")
    result.add_argument("--rounds", type=int, help="number of rounds (default: 3; provider 5, bundled 7, cache 200)")
    result.add_argument("--cores", default="1", help="cores of each system, in the syntax of taskset")
    result.add_argument("--load-cores", default="0", help="cores of the load generator")
    result.add_argument(
        "--limit-s", type=float, default=30.0, help="seconds of a round after which no further call starts"
    )
    result.add_argument("--minutes", type=float, default=10.0, help="duration of soak")
    result.add_argument(
        "--grpcio", default=cancelled.INSTALLED, help="versions of grpcio for cancelled, such as 1.80.0,1.85.1"
    )
    result.add_argument("--calls", type=int, default=20_000, help="number of calls of each kind for cancelled")
    result.add_argument("--json", type=Path, help="file for the report")
    result.add_argument("--plot", type=Path, help="draw the chart of benchmarks/results to this file and exit")
    return result


def _systems(argument: str) -> list[str]:
    names = [name.strip() for name in argument.split(",")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"unknown system: {', '.join(unknown)}; known: {', '.join(SYSTEMS)}")
    return names


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the workload, prints a summary, and returns the report."""
    pinning = Pinning(server_cores=args.cores, load_cores=args.load_cores)
    if args.work in STANDALONE:
        report = STANDALONE[args.work].run(args, pinning)
        print(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=2))
        return report
    plan = compare.Plan(
        workload=WORKLOADS[args.work],
        model=models.find(args.model),
        systems=tuple(args.systems),
        rounds=args.rounds or 3,
        pinning=pinning,
        limit_s=args.limit_s,
    )
    report = compare.run(plan)
    print(table(report))
    return report


def main(arguments: Sequence[str]) -> None:
    """Measures the workload of the command line and writes the report, or draws the chart."""
    args = parser().parse_args(arguments)
    if args.plot:
        subprocess.run([str(environments.python("plot")), "-m", "benchmarks.plot", str(args.plot)], check=True)
        return
    report = {**measure(args), "command": f"python -m benchmarks {shlex.join(arguments)}"}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not report.get("passed", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
