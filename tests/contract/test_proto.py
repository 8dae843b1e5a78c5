"""The committed stubs are the contract's, and the contract keeps its rules and its promise to callers."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-proto" / "bin" / "python"
STUBS = ROOT / "client" / "src" / "isogloss" / "v1"


def contract(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PYTHON.exists(), "the generator's environment is missing: make .venv-proto"
    command = [PYTHON, ROOT / "tools" / "contract.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of the contract, to be changed."""
    copy = tmp_path / "proto"
    file = copy / "isogloss" / "v1" / "embedding.proto"
    file.parent.mkdir(parents=True)
    file.write_text((ROOT / "proto" / "isogloss" / "v1" / "embedding.proto").read_text())
    return copy


def change(proto: Path, old: str, new: str) -> None:
    file = proto / "isogloss" / "v1" / "embedding.proto"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_stubs_are_current(tmp_path: Path) -> None:
    """What the pinned generator makes of the proto is what is committed, byte for byte."""
    made = contract("stubs", tmp_path)
    assert made.returncode == 0, made.stderr
    files = {file.name: file.read_bytes() for file in (tmp_path / "isogloss" / "v1").iterdir()}
    committed = {file.name: file.read_bytes() for file in STUBS.glob("*_pb2*.py*")}
    assert files == committed
    assert len(files) == 4


def test_lint_passes_and_can_fail(changed: Path) -> None:
    """Buf's STANDARD rules hold, and a name that breaks them is found."""
    assert contract("lint").returncode == 0
    change(changed, "PRIORITY_BULK = 2", "BULK = 2")
    found = contract("lint", "--proto", changed)
    assert found.returncode != 0
    assert "BULK" in found.stdout


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("uint32 rows = 2;", "uint64 rows = 2;", True),
        ("  bool per_text_counts = 9;", "  bool per_text_counts = 19;", True),
        ("METRIC_MANHATTAN = 4;", "METRIC_MANHATTAN = 5;", True),
        ("message HealthRequest {", "message HealthRequest {\n  string zone = 2;", False),
    ],
)
def test_breaking_changes_are_found(changed: Path, old: str, new: str, broken: bool) -> None:
    """A change that would break a caller of the released contract is found; an added field is none."""
    assert contract("breaking").returncode == 0
    change(changed, old, new)
    assert (contract("breaking", "--proto", changed).returncode != 0) is broken
