"""Time: the server uses the monotonic clock only."""

import ast
from pathlib import Path

import isogloss_server
import pytest

PACKAGE = Path(isogloss_server.__file__).parent
WALL = {"datetime": {"logs.py"}}  # log lines have a timestamp, which has no other use
MONOTONIC = {"monotonic", "sleep"}  # asyncio.sleep uses the monotonic clock of the event loop


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_log_reads_the_wall_clock(file: Path) -> None:
    """No deadline, watchdog or expiry depends on the date of the machine, which only the log reads."""
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
        assert used <= MONOTONIC
