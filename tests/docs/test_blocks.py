"""Every block of code in the documents does what it says."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isogloss_server import cli as program
from isogloss_server.settings.declarations import Settings
from isogloss_server.settings.sources import load

from tests.docs import blocks
from tests.docs.blocks import BLOCKS, FILES, Block, of_language
from tests.support.server_process import ServerProcess

LANGUAGES = {"python", "sh", "toml", "yaml", "text"}
SENTENCES = "The train is full.\nIl pleut.\n\nDer Bahnhof ist links.\n"
PYTHON = [block for block in of_language("python") if not block.needs_pytest]
COMMANDS = [(block, command) for block in of_language("sh") for command in blocks.commands_of(block)]


@pytest.fixture
def reader(tmp_path: Path, static_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the things that a reader of the documents would have."""
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "sentences.txt").write_text(SENTENCES, encoding="utf-8")
    (folder / "proto").symlink_to(blocks.ROOT / "proto")
    shutil.copytree(static_folder, folder / "my-model")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_language_is_known(block: Block) -> None:
    """Each block is in a language that is run or read by a test; what is not to be run says so, as text."""
    assert block.language in LANGUAGES


@pytest.mark.parametrize(
    "file", sorted({block.file for block in PYTHON}), ids=lambda file: str(file.relative_to(blocks.ROOT))
)
def test_python_runs(file: Path, server: ServerProcess, reader: Path) -> None:
    """A file's blocks run one after the other, and print what they say that they print."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in PYTHON:
        if block.file == file:
            blocks.run_python(block, namespace, server.address)


@pytest.mark.parametrize("block", [block for block in of_language("python") if block.needs_pytest], ids=str)
def test_tests_pass(block: Block, reader: Path) -> None:
    """An example of a test file passes in a pytest that knows nothing but what is installed."""
    blocks.run_pytest(block, reader)


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_commands_run(block: Block, command: str, server: ServerProcess, reader: Path) -> None:
    """Commands of ours run with exit status 0; what would install or make something exists."""
    match command.partition("#")[0].split():
        case ["make", target]:
            blocks.check_make(target)
        case ["pip", "install", *folders]:
            blocks.check_pip(folders)
        case ["isogloss-server", "serve", *_]:
            _write_config(block.file, reader)
            _serve(blocks.serve_flags(command))
        case ["isogloss", *_] | ["buf", "curl", *_] | ["python", "-m", "grpc_tools.protoc", *_]:
            blocks.run_shell(command, reader, server.address)
        case _:
            pytest.fail(f"{block}: nobody knows how to run {command!r}")


@pytest.mark.parametrize("block", of_language("toml"), ids=str)
def test_settings_load(block: Block, reader: Path) -> None:
    """A TOML file is one that the server takes."""
    _write_config(block.file, reader)
    assert load({"config": "isogloss.toml"}) != Settings()


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_manifests_are_true(block: Block, server: ServerProcess) -> None:
    """A manifest is YAML, its probes ask about names that the server knows, its containers give known settings."""
    documents = list(yaml.safe_load_all(block.text))
    with grpc.insecure_channel(server.address) as channel:
        for name in blocks.grpc_probes(documents):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    pods = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    for pod in pods:
        for container in pod["containers"]:
            loaded = _settings(container["args"])
            assert pod["terminationGracePeriodSeconds"] > loaded.drain_delay_s + loaded.drain_s
            assert loaded.port in {port["containerPort"] for port in container["ports"]}


def test_every_document_is_read() -> None:
    """The documents are found, and they have blocks of every kind."""
    assert len(FILES) >= 8
    assert {block.language for block in BLOCKS} == LANGUAGES


def _settings(arguments: list[str]) -> Settings:
    flags = vars(program.parser().parse_args(arguments))
    del flags["verb"]
    return load(flags)


def _write_config(file: Path, folder: Path) -> None:
    """Writes the TOML block of a document as the file that its commands name."""
    for block in of_language("toml"):
        if block.file == file:
            (folder / "isogloss.toml").write_text(block.text, encoding="utf-8")


def _serve(flags: list[str]) -> None:
    """Starts a server, and stops it without the delay that it may have been told."""
    process = ServerProcess(*flags, "--port", "0", "--log-format", "json")
    assert process.address
    process.signal(signal.SIGTERM)
    process.wait_for("draining")
    process.signal(signal.SIGTERM)
    assert process.wait() in {0, 128 + signal.SIGTERM}
