"""Servers that the system grants little: a program in the interpreter's place that lowers the limits first."""

import sys
from pathlib import Path


def python_with(folder: Path, *limits: str) -> Path:
    """Returns a program that is Python after `ulimit` with each of `limits`, such as "-n 64"."""
    program = folder / "python-limited"
    lines = ["#!/bin/sh", *(f"ulimit {limit} || exit 97" for limit in limits), f'exec "{sys.executable}" "$@"']
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program
