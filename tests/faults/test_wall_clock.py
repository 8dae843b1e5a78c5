"""Time: the server uses the monotonic clock, and the date only for log lines and for the expiry of credentials."""

import ast
from pathlib import Path

import isogloss_server
import pytest

PACKAGE = Path(isogloss_server.__file__).parent
# Log lines have a timestamp, which has no other use; the file of keys has the dates at which they expire.
WALL = {"datetime": {"logs.py", "cli/keys.py", "security/keys.py"}}
CLOCKS = {"monotonic", "sleep", "time"}  # asyncio.sleep uses the monotonic clock of the event loop
DATED = ("clock.py", "cli/keys.py", "security/")  # certificates and keys expire at a date


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_log_and_credentials_depend_on_the_date(file: Path) -> None:
    """No deadline, watchdog or lifetime of the server's own depends on the date of the machine."""
    tree = ast.parse(file.read_text())
    name = str(file.relative_to(PACKAGE))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for module, files in WALL.items():
        assert module not in modules or name in files
    dated = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "unix_s"]
    assert not dated or name.startswith(DATED)
    if "time" in modules:
        assert name == "clock.py"
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
        }
        assert used <= CLOCKS
