"""Isogloss beside its peers, in turn on the same machine, and what it holds by itself.

python -m benchmarks --work single|batch|bulk|trickle [--model MODEL] [--systems NAME,...] [--rounds N]
                     [--cores CORES] [--load-cores CORES] [--json FILE] [--plot FILE.png]
python -m benchmarks --work bundled|cache|provider [--rounds N] [--json FILE]
python -m benchmarks --work overload [--model MODEL] [--rounds N] [--json FILE]
python -m benchmarks --work soak [--minutes N] [--json FILE]
python -m benchmarks --work cancelled [--grpcio VERSION,...] [--calls N] [--json FILE]
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

from benchmarks import bundled, cache, cancelled, compare, environments, models, overload, provider, soak
from benchmarks.measure import Pinning
from benchmarks.report import table
from benchmarks.systems import SYSTEMS
from benchmarks.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Alone:
    """A work of the service alone, or beside what is no peer."""

    says: str
    run: Callable[[argparse.Namespace, Pinning], dict[str, Any]]


ALONE = {
    "bundled": Alone(
        "the bundled model beside an echo and its tokenizer (default)", lambda args, _: bundled.run(args.rounds or 7)
    ),
    "cache": Alone("what a hit and a miss of the cache cost", lambda args, _: cache.run(args.rounds or 200)),
    "provider": Alone(
        "a thousand texts through a provider's API, beside its own SDK",
        lambda args, pinning: provider.run(args.rounds or 5, pinning),
    ),
    "overload": Alone(
        "ten times what the server can carry, and queries beside bulk work",
        lambda args, pinning: overload.run(models.find(args.model), args.rounds or 3, pinning),
    ),
    "soak": Alone(
        "everything at once for minutes, exit status 1 where something did not hold",
        lambda args, _: soak.run(models.find(models.MULTILINGUAL), args.minutes),
    ),
    "cancelled": Alone(
        "what calls leave behind that are not answered",
        lambda args, _: cancelled.run(args.grpcio.split(","), args.calls),
    ),
}


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    loads = [f"{work.name}: {work.says}" for work in WORKLOADS.values()]
    loads += [f"{name}: {work.says}" for name, work in ALONE.items()]
    made.add_argument("--work", choices=[*WORKLOADS, *ALONE], default="bundled", help="; ".join(loads))
    made.add_argument("--systems", type=_systems, default=list(SYSTEMS), help=f"of {', '.join(SYSTEMS)}; all if absent")
    made.add_argument("--model", default=models.MINILM, help=f"{models.MINILM}, {models.MULTILINGUAL} or a folder")
    made.add_argument("--rounds", type=int, help="3; 5 of the provider, 7 of the bundled model, 200 of the cache")
    made.add_argument("--cores", default="1", help="cores of every system, as taskset takes them")
    made.add_argument("--load-cores", default="0", help="cores of the load generator")
    made.add_argument("--limit-s", type=float, default=30.0, help="a system starts no calls of a round after so long")
    made.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    made.add_argument(
        "--grpcio", default=cancelled.INSTALLED, help="versions of cancelled's servers, such as 1.80.0,1.85.1"
    )
    made.add_argument("--calls", type=int, default=20_000, help="of each kind that cancelled makes")
    made.add_argument("--json", type=Path, help="file to write the report to")
    made.add_argument("--plot", type=Path, help="picture to draw of the report, PNG")
    return made


def _systems(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    if unknown := [name for name in names if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    return names


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the report of a work, which it prints in short."""
    pinning = Pinning(server_cores=args.cores, load_cores=args.load_cores)
    if args.work in ALONE:
        report = ALONE[args.work].run(args, pinning)
        print(json.dumps({name: value for name, value in report.items() if name != "samples"}, indent=2))
        return report
    plan = compare.Plan(
        work=WORKLOADS[args.work],
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
    """Reads the command line, measures, writes the report."""
    args = parser().parse_args(arguments)
    if args.plot and not (args.json and args.work in WORKLOADS):
        raise SystemExit("--plot draws what --json writes, of a work with systems")
    report = {**measure(args), "command": f"python -m benchmarks {shlex.join(arguments)}"}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        command = [str(environments.python("plot")), "-m", "benchmarks.plot", str(args.plot), str(args.json)]
        subprocess.run(command, check=True)
    if not report.get("held", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
