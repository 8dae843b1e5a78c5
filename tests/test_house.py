"""The rules of CONTRIBUTING.md that no other tool checks: time, environment, length of modules, licences, versions."""

import ast
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "server" / "src" / "isogloss_server"
SOURCES = [
    *SERVER.rglob("*.py"),
    *(file for file in (ROOT / "client" / "src" / "isogloss").rglob("*.py") if "v1" not in file.parts),
]
MODULE_LINES = 600


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", sorted(SERVER.rglob("*.py")), ids=name_of)
def test_clock_and_settings_alone_read_the_surroundings(file: Path) -> None:
    """Only `clock` reads the time, and only `settings` reads the environment."""
    part = file.relative_to(SERVER).with_suffix("").parts[0]
    tree = ast.parse(file.read_text())
    assert part == "clock" or not [name for name in imported(tree) if name.split(".")[0] == "time"]
    reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv"}]
    assert part == "settings" or not reads


@pytest.mark.parametrize("file", sorted(SOURCES), ids=name_of)
def test_modules_stay_under_the_ceiling(file: Path) -> None:
    """No module has more than 600 lines; ruff bounds the complexity and the parameters of its functions."""
    assert len(file.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize(("name", "copy"), [("LICENSE", "client"), ("LICENSE", "server"), ("NOTICE", "server")])
def test_each_distribution_carries_its_licence(name: str, copy: str) -> None:
    """The licence and the notice that a distribution carries are the repository's."""
    assert (ROOT / copy / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_version_is_the_changelogs() -> None:
    """Both distributions have the version that stands in one file, and the changelog begins with it."""
    import isogloss

    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert metadata.version("isogloss") == metadata.version("isogloss-server") == isogloss.__version__ == newest[1]
    assert f"isogloss=={isogloss.__version__}" in (metadata.requires("isogloss-server") or [])
