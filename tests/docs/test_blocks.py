"""Every code block of the documents runs and prints what it states."""

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
    """The working directory, a folder with the files that the documents refer to."""
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "sentences.txt").write_text(SENTENCES, encoding="utf-8")
    (folder / "proto").symlink_to(blocks.ROOT / "proto")
    shutil.copytree(static_folder, folder / "my-model")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_language_of_each_block_is_tested(block: Block) -> None:
    """Each block is in a language that a test runs or reads, or is marked as text."""
    assert block.language in LANGUAGES


@pytest.mark.parametrize(
    "file", sorted({block.file for block in PYTHON}), ids=lambda file: str(file.relative_to(blocks.ROOT))
)
def test_python_blocks_run(file: Path, server: ServerProcess, reader: Path) -> None:
    """The Python blocks of a file run in sequence, and their output matches their comments."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in PYTHON:
        if block.file == file:
            blocks.run_python(block, namespace, server.address)


@pytest.mark.parametrize("block", [block for block in of_language("python") if block.needs_pytest], ids=str)
def test_example_tests_pass(block: Block, reader: Path) -> None:
    """An example of a test file passes in a pytest with the installed plugin only."""
    blocks.run_pytest(block, reader)


@pytest.mark.parametrize(("block", "command"), COMMANDS, ids=str)
def test_shell_commands_succeed(block: Block, command: str, server: ServerProcess, reader: Path) -> None:
    """Commands of Isogloss exit with status 0; the targets of make and the folders of pip exist."""
    match command.partition("#")[0].split():
        case ["make", target]:
            blocks.check_make(target)
        case ["pip", "install", *folders]:
            blocks.check_pip(folders)
        case ["openssl", *_]:
            _make_certificates(block.file, reader)
        case ["isogloss", *words] if "--root-certificates" in words:
            _make_certificates(block.file, reader)
            with ServerProcess(*blocks.serve_flags(blocks.commands_of(block)[0])) as process:
                blocks.run_shell(command, reader, process.address)
        case ["isogloss-server", "serve", *words]:
            if "--tls-cert" in words:
                _make_certificates(block.file, reader)
            _write_config(block.file, reader)
            _serve(blocks.serve_flags(command))
        case ["isogloss", *_] | ["buf", "curl", *_] | ["python", "-m", "grpc_tools.protoc", *_]:
            blocks.run_shell(command, reader, server.address)
        case _:
            pytest.fail(f"{block}: no test for the command {command!r}")


@pytest.mark.parametrize("block", of_language("toml"), ids=str)
def test_toml_blocks_are_valid_settings(block: Block, reader: Path) -> None:
    """The server accepts each TOML block as a config file."""
    _write_config(block.file, reader)
    assert load({"config": "isogloss.toml"}) != Settings()


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_manifests_match_the_server(block: Block, server: ServerProcess) -> None:
    """The probes of a manifest use services that the server has, and its containers use known settings."""
    documents = list(yaml.safe_load_all(block.text))
    with grpc.insecure_channel(server.address) as channel:
        for name in blocks.grpc_probes(documents):
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
            assert response.status == health_pb2.HealthCheckResponse.SERVING
    pods = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    for pod in pods:
        for container in pod["containers"]:
            loaded = _settings(container["args"])
            assert pod["terminationGracePeriodSeconds"] > loaded.drain_delay_s + loaded.drain_s
            assert loaded.port in {port["containerPort"] for port in container["ports"]}


def test_all_documents_are_found() -> None:
    """The documents are found and have blocks of every language."""
    assert len(FILES) >= 8
    assert {block.language for block in BLOCKS} == LANGUAGES


def _settings(arguments: list[str]) -> Settings:
    flags = vars(program.parser().parse_args(arguments))
    del flags["verb"]
    return load(flags)


def _write_config(file: Path, folder: Path) -> None:
    """Writes the TOML block of a document to isogloss.toml, which its commands use."""
    for block in of_language("toml"):
        if block.file == file:
            (folder / "isogloss.toml").write_text(block.text, encoding="utf-8")


def _make_certificates(file: Path, folder: Path) -> None:
    """Runs all openssl commands of a document, which use each other's files, in order."""
    for block, command in COMMANDS:
        if block.file == file and command.startswith("openssl"):
            blocks.run_shell(command, folder, "")


def _serve(flags: list[str]) -> None:
    """Starts a server and stops it; a second signal skips the delay of the drain."""
    process = ServerProcess(*flags, "--port", "0", "--log-format", "json")
    assert process.address
    process.signal(signal.SIGTERM)
    process.wait_for("draining")
    process.signal(signal.SIGTERM)
    assert process.wait() in {0, 128 + signal.SIGTERM}
