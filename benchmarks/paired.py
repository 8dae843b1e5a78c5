"""Compares a workload in this checkout with the same workload in another one, such as the commit before, in pairs.

    python -m benchmarks.paired CHECKOUT [--pairs N] [--json FILE] -- --work single --systems isogloss-bf16

Runs `python -m benchmarks` with the arguments after `--` alternately in the other checkout and in this one, each with
its own environment (.venv), so that other load on the machine affects both. Figures are medians over the runs, ratios
are new / old within a pair.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import machine, spread

HERE = Path(__file__).parents[1]
SECTIONS = ("figures", "systems", "ratios")


def figures(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields each number of a report under its path; of a spread, its median."""
    for name, value in report.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, Mapping):
            if "median" in value:
                yield path, float(value["median"])
            else:
                yield from figures(value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield path, float(value)


def measure(checkout: Path, arguments: Sequence[str]) -> dict[str, float]:
    """Runs one benchmark in a checkout and returns its figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [checkout / ".venv" / "bin" / "python", "-m", "benchmarks", *arguments, "--json", file]
        subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
        report = json.loads(file.read_text(encoding="utf-8"))
    return dict(figures({name: report[name] for name in SECTIONS if name in report}))


def run(other: Path, pairs: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Measures `pairs` pairs and returns the report."""
    runs = [(measure(other, arguments), measure(HERE, arguments)) for _ in range(pairs)]
    common = [name for name in runs[0][0] if all(name in old and name in new for old, new in runs)]
    return {
        "pairs": pairs,
        "machine": machine(),
        "old": {name: spread([old[name] for old, _ in runs]) for name in common},
        "new": {name: spread([new[name] for _, new in runs]) for name in common},
        "ratios": {name: spread([new[name] / old[name] for old, new in runs if old[name]] or [1.0]) for name in common},
    }


def main() -> None:
    """Measures what the command line names and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the other checkout, after `make setup` there")
    parser.add_argument("--pairs", type=int, default=5, help="number of pairs (default: 5)")
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("arguments", nargs="+", help="arguments of `python -m benchmarks`, after --")
    args = parser.parse_args()
    report = run(args.checkout.resolve(), args.pairs, args.arguments)
    report["command"] = f"python -m benchmarks.paired CHECKOUT --pairs {args.pairs} -- {' '.join(args.arguments)}"
    for name, ratio in report["ratios"].items():
        old, new = report["old"][name]["median"], report["new"][name]["median"]
        print(f"{name:60} {old:12.4g} {new:12.4g}  x {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
