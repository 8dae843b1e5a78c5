"""Both distributions, built, installed into empty environments, and used there."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import isogloss
import pytest
from packaging.requirements import Requirement

from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "constraints" / "runtime.txt"
CLIENT_NEEDS = {"grpcio", "protobuf", "googleapis-common-protos", "numpy"}
INDIRECT = {"typing-extensions"}  # of grpcio


def run(*command: str | Path, **env: str) -> str:
    """Returns the output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env}, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of both distributions, built from their sdists and checked by twine."""
    out = tmp_path_factory.mktemp("dist")
    for name in ("client", "server"):
        run(sys.executable, "-m", "build", "--outdir", out, ROOT / name)
    run(sys.executable, "-m", "twine", "check", "--strict", *out.iterdir())
    assert len(list(out.iterdir())) == 4
    return {wheel.name.split("-")[0]: wheel for wheel in out.glob("*.whl")}


def environment(folder: Path, *wheels: Path) -> Path:
    """Returns the programs of a new environment that holds these wheels and their dependencies."""
    run(sys.executable, "-m", "venv", folder)
    versions = folder / "versions.txt"
    # Without hashes: with one of them, pip asks for those of the wheels too.
    versions.write_text("\n".join(line.rstrip(" \\") for line in LOCK.read_text().splitlines() if "==" in line))
    run(folder / "bin" / "pip", "install", "-q", "-c", versions, *wheels)
    run(folder / "bin" / "pip", "check")
    return folder / "bin"


@pytest.fixture(scope="module")
def client_only(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the client alone."""
    return environment(tmp_path_factory.mktemp("client-only"), wheels["isogloss"])


@pytest.fixture(scope="module")
def both(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with client and server."""
    return environment(tmp_path_factory.mktemp("both"), *wheels.values())


def test_the_client_installs_only_its_dependencies(client_only: Path) -> None:
    """The client installs grpcio, protobuf, googleapis-common-protos and numpy, and nothing of the server."""
    listed = json.loads(run(client_only / "pip", "list", "--format", "json"))
    names = {package["name"].lower().replace("_", "-") for package in listed} - {"pip", "setuptools", "wheel"}
    assert names - INDIRECT == {"isogloss"} | CLIENT_NEEDS
    with pytest.raises(AssertionError, match="isogloss_server"):
        run(client_only / "python", "-c", "import isogloss_server")


def test_the_client_works_without_the_server_package(client_only: Path, server: ServerProcess) -> None:
    """A program with the client runs in an environment without the server package."""
    program = """
import sys
from isogloss import Client
with Client(sys.argv[1]) as client:
    vectors = client.embed(["Good morning", "おはよう"]).vectors
    candidates = ["I like tea", "¿Dónde está la estación?", "Der Zug ist voll"]
    [best] = client.nearest("Where is the station?", candidates, k=1)
    print(vectors.dtype, vectors.shape[0], best.row, best.text)
"""
    assert run(client_only / "python", "-c", program, server.address) == "float32 2 1 ¿Dónde está la estación?\n"


def test_the_command_line_is_installed(client_only: Path, server: ServerProcess) -> None:
    """The wheel of the client installs the command `isogloss`."""
    health = json.loads(run(client_only / "isogloss", "health", "--json", "--server", server.address))
    assert health["status"] == "serving"


def test_the_server_runs_from_its_wheel(both: Path, wheels: dict[str, Path]) -> None:
    """The wheel of the server contains the bundled model, serves it, and exits with status 0."""
    process = ServerProcess(python=both / "python")
    scores = run(both / "isogloss", "similarity", "Good night", "Gute Nacht", "--server", process.address)
    assert "Gute Nacht" in scores
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("isogloss", ["isogloss/py.typed", "isogloss/v1/embedding_pb2.pyi", "licenses/LICENSE"]),
        (
            "isogloss_server",
            [
                "isogloss_server/py.typed",
                "isogloss_server/bundled/model.safetensors",
                "isogloss_server/bundled/isogloss.json",
                "licenses/LICENSE",
                "licenses/NOTICE",
            ],
        ),
    ],
)
def test_wheels_have_licence_typing_marker_stubs_and_model(
    wheels: dict[str, Path], name: str, expected: list[str]
) -> None:
    """The wheels contain the licence, typing marker, stubs and bundled model, and no tests."""
    names = zipfile.ZipFile(wheels[name]).namelist()
    [metadata] = [entry for entry in names if entry.endswith("METADATA")]
    text = zipfile.ZipFile(wheels[name]).read(metadata).decode()
    assert f"Version: {isogloss.__version__}" in text
    assert "License-Expression: Apache-2.0" in text
    assert "# isogloss" in text
    if name == "isogloss_server":
        assert f"Requires-Dist: isogloss=={isogloss.__version__}" in text
    for end in expected:
        assert [entry for entry in names if entry.endswith(end)], end
    assert not [entry for entry in names if entry.startswith("tests") or "/test_" in entry]


@pytest.mark.parametrize("name", ["isogloss", "isogloss_server"])
def test_wheels_have_an_sbom_that_is_true(wheels: dict[str, Path], name: str) -> None:
    """The wheels have an SBOM where PEP 770 says, with the requirements of METADATA and the digests of the model."""
    wheel = zipfile.ZipFile(wheels[name])
    [sbom] = [entry for entry in wheel.namelist() if ".dist-info/sboms/" in entry]
    assert sbom == f"{name}-{isogloss.__version__}.dist-info/sboms/{name.replace('_', '-')}.cdx.json"
    bom = json.loads(wheel.read(sbom))
    assert bom["metadata"]["component"]["version"] == isogloss.__version__
    stated = {entry["value"] for part in bom["components"] for entry in part.get("properties", ())}
    text = wheel.read(f"{name}-{isogloss.__version__}.dist-info/METADATA").decode()
    assert stated == {str(Requirement(line)) for line in message_from_string(text).get_all("Requires-Dist", [])}
    files = [file for part in bom["components"] for file in part.get("components", ())]
    digests = {file["name"]: file["hashes"][0]["content"] for file in files}
    bundled = [entry for entry in wheel.namelist() if "/bundled/" in entry]
    assert digests == {entry: hashlib.sha256(wheel.read(entry)).hexdigest() for entry in bundled}
    assert bool(digests) == (name == "isogloss_server")
