"""Clocks that jump."""

import ast
from pathlib import Path

import isogloss_server
import pytest

PACKAGE = Path(isogloss_server.__file__).parent
WALL = {"datetime": {"logs.py"}}  # a line of the log has its moment, and nothing depends on it
STEADY = {"monotonic", "sleep"}  # asyncio's sleep among them, which counts the loop's own steady seconds


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_depends_on_the_wall_clock(file: Path) -> None:
    """However the machine's date jumps, no deadline, watchdog or expiry moves: only the log looks at the date."""
    tree = ast.parse(file.read_text())
    name = str(file.relative_to(PACKAGE))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for module, files in WALL.items():
        assert module not in modules or name in files
    if "time" in modules:
        assert name == "clock.py"
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
        }
        assert used <= STEADY
