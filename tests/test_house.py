"""The rules of CONTRIBUTING.md that a machine can check: who imports whom, and how long things are."""

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
FOR_ALL = {"errors", "settings", "clock", "logs", "metrics", "system", "circuit_breaker", "_version"}
# What each part may import of the server, but for those that build everything.
BUILDERS = {"app", "factory", "cli", "__main__"}
MAY_IMPORT = {
    "models": {"models"},
    "engine": {"engine", "models.interfaces", "models.tokenizer"},
    "rpc": {"rpc", "engine", "models.interfaces"},
    "settings": {"models.model_folder", "models.catalog"},
}
# The one place that may import each runtime.
RUNTIMES = {
    "openvino": "models/openvino/",
    "torch": "models/sentence_transformers.py",
    "sentence_transformers": "models/sentence_transformers.py",
    "transformers": "models/sentence_transformers.py",
    "huggingface_hub": "models/hub.py",
    "cohere": "models/providers/cohere.py",
    "httpx": "models/providers/cohere.py",
    "openai": "models/providers/openai.py",
    "prometheus_client": "metrics.py",
    "redis": "engine/redis_store.py",
}
# Parts of the client that the server may import: all of them in rpc, those without protobuf elsewhere.
VOCABULARY = ("isogloss.wire.enums.", "isogloss.wire.matrix.", "isogloss.wire.sizes.")
FROM_CLIENT = ("isogloss.v1.", "isogloss.wire.")
MODULE_LINES, FUNCTION_LINES, POSITIONAL, PARAMETERS = 600, 60, 6, 12


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
def test_imports_go_down(file: Path) -> None:
    """Rpc -> engine -> models; only rpc knows grpc and the contract; only settings reads the environment."""
    part = file.relative_to(SERVER).with_suffix("").parts[0]
    tree = ast.parse(file.read_text())
    for name in imported(tree):
        top = name.split(".")[0]
        assert part == "rpc" or not top.startswith("grpc"), name
        if top == "isogloss":
            assert name.startswith(FROM_CLIENT if part == "rpc" else VOCABULARY), name
        assert part == "clock" or top != "time", f"{name}: the clock is handed in"
        assert str(file.relative_to(SERVER)).startswith(RUNTIMES.get(top, "")), f"{top} is imported elsewhere"
        if top == "isogloss_server" and part not in BUILDERS:
            inner = name.removeprefix("isogloss_server.")
            allowed = MAY_IMPORT.get(part, set()) | FOR_ALL
            assert any(inner == a or inner.startswith(f"{a}.") for a in allowed), f"{part} imports {inner}"
    if part != "settings":
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv"}]
        assert not reads, "settings.py alone reads the environment"


@pytest.mark.parametrize("file", sorted(SOURCES), ids=name_of)
def test_ceilings(file: Path) -> None:
    """No module, function or list of parameters is longer than what one can hold in mind."""
    text = file.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or 0) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        positional = [a for a in node.args.posonlyargs + node.args.args if a.arg not in {"self", "cls"}]
        assert lines <= FUNCTION_LINES, node.name
        assert len(positional) <= POSITIONAL, node.name
        assert len(positional) + len(node.args.kwonlyargs) <= PARAMETERS, node.name


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
