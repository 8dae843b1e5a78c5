"""The committed stubs match the contract, and the contract keeps its lint rules and its compatibility."""

import re
import subprocess
from pathlib import Path

import pytest

from tools.generate_docs import MEBIBYTE, Settings

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-proto" / "bin" / "python"
PROTO = ROOT / "proto" / "isogloss" / "v1" / "embedding.proto"
STUBS = ROOT / "client" / "src" / "isogloss" / "v1"


def contract(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    assert PYTHON.exists(), "the generator's environment is missing: run make .venv-proto/.ready"
    command = [PYTHON, ROOT / "tools" / "contract.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """A copy of the proto folder for the test to change."""
    copy = tmp_path / "proto"
    file = copy / "isogloss" / "v1" / "embedding.proto"
    file.parent.mkdir(parents=True)
    file.write_text(PROTO.read_text())
    return copy


def change(proto: Path, old: str, new: str) -> None:
    file = proto / "isogloss" / "v1" / "embedding.proto"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_stubs_are_current(tmp_path: Path) -> None:
    """The pinned generator produces the committed stubs, byte for byte."""
    made = contract("stubs", tmp_path)
    assert made.returncode == 0, made.stderr
    files = {file.name: file.read_bytes() for file in (tmp_path / "isogloss" / "v1").iterdir()}
    committed = {file.name: file.read_bytes() for file in STUBS.glob("*_pb2*.py*")}
    assert files == committed
    assert len(files) == 4


def test_lint_passes() -> None:
    """The contract keeps buf's STANDARD and COMMENTS rules."""
    result = contract("lint")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("PRIORITY_BULK = 2", "BULK = 2", 'Enum value name "BULK" should be prefixed'),
        ("  // Never sent.\n", "", 'Enum value "SERVING_STATUS_UNSPECIFIED" should have a non-empty comment'),
        ("  // Number of rows, at least 1.\n", "", 'Field "rows" should have a non-empty comment'),
        (
            "  // Number of rows, at least 1.\n  uint32 rows = 2;\n",
            "  uint32 rows = 2; // Number of rows, at least 1.\n",
            'Field "rows" should have a non-empty comment',
        ),
        ("// HealthRequest is the request of Health.\n", "", 'Message "HealthRequest" should have a non-empty comment'),
        ("  // The outcome of the request; always set.\n", "", 'Oneof "result" should have a non-empty comment'),
    ],
    ids=["enum value prefix", "no comment on a value", "no comment on a field", "trailing comment", "message", "oneof"],
)
def test_lint_finds_a_broken_rule(changed: Path, old: str, new: str, found: str) -> None:
    """Lint fails on a name without its prefix and on an element without a leading comment."""
    change(changed, old, new)
    result = contract("lint", "--proto", changed)
    assert result.returncode != 0
    assert found in result.stdout


def test_stated_defaults_are_those_of_the_settings() -> None:
    """Defaults in the comments of the contract equal the defaults of the server's settings."""
    comments = " ".join(re.sub(r"^ *//", "", PROTO.read_text(), flags=re.MULTILINE).split())
    default = Settings.model_construct()
    stream = f"{default.stream_window_requests}) or bytes (default {default.stream_window_bytes // MEBIBYTE} MiB"
    assert f"too many unanswered requests (default {stream}" in comments
    assert f"models of a provider (default {default.provider_timeout_s:g} s)" in comments
    assert f"reason REQUEST_TOO_LARGE. Default: {default.max_request_bytes // MEBIBYTE} MiB" in comments
    assert f"reason RESPONSE_TOO_LARGE. Default: {default.max_response_bytes // MEBIBYTE} MiB" in comments
    assert f"reason RESPONSE_TOO_LARGE. Default: {default.max_pairs:,}." in comments


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
    """A change that breaks callers of the released contract fails the check; a new field passes it."""
    assert contract("breaking").returncode == 0
    change(changed, old, new)
    assert (contract("breaking", "--proto", changed).returncode != 0) is broken


def test_the_released_contract_is_complete(tmp_path: Path) -> None:
    """The released image is all that protoc needs for stubs of the contract and of the details of errors."""
    files = ["isogloss/v1/embedding.proto", "google/rpc/error_details.proto"]
    image = ROOT / "proto" / "released" / "v1.binpb"
    command = [PYTHON, "-m", "grpc_tools.protoc", f"--descriptor_set_in={image}", f"--python_out={tmp_path}", *files]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert {file.name for file in tmp_path.rglob("*.py")} == {"embedding_pb2.py", "error_details_pb2.py"}
