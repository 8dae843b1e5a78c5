"""The metadata of both distributions names what they import, and its lowest versions are those that are tested."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints"
SOURCES = {"isogloss": ROOT / "client" / "src", "isogloss-server": ROOT / "server" / "src"}
OF_GOOGLE = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
}  # two distributions in one package
OF_OPENTELEMETRY = {  # of several distributions; all else is of the first
    "opentelemetry": "opentelemetry-api",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.sdk": "opentelemetry-sdk",
}
NOT_INSTALLED = {"sentence_transformers", "torch", "transformers"}  # here; each has the name of its distribution
PIN = re.compile(r"^([a-z0-9-]+)==([^\s;]+)")
INSTALLED = metadata.packages_distributions()
HANDED_IN = {("isogloss", "pytest")}  # pytest itself loads the plugin
WITHOUT_HASHES = {"sentence-transformers", "upstream"}  # CPU builds of torch have hashes of their own
# The lowest versions of this extra are in no lock: torch for CPUs is to be had in one version.
UNLOCKED_EXTRA = "sentence-transformers"


def imported(folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def distribution(module: str) -> str:
    """Returns the distribution that has a third-party module."""
    top = module.split(".", maxsplit=1)[0]
    if top == "google":
        return OF_GOOGLE[".".join(module.split(".")[:2])]
    if top == "opentelemetry":
        return OF_OPENTELEMETRY.get(".".join(module.split(".")[:2]), OF_OPENTELEMETRY[top])
    if top in NOT_INSTALLED | set(SOURCES) | {"isogloss_server"}:
        return canonicalize_name(top)
    [found] = set(INSTALLED[top])
    return canonicalize_name(found)


def requirements(name: str) -> list[Requirement]:
    return [Requirement(line) for line in metadata.requires(name) or []]


def pins(lock: str) -> dict[str, Version]:
    lines = (CONSTRAINTS / f"{lock}.txt").read_text().splitlines()
    return {name: Version(version) for name, version in (m.groups() for m in map(PIN.match, lines) if m)}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_imported_is_declared(name: str) -> None:
    """Each third-party module that a distribution imports belongs to a declared dependency or to one of an extra."""
    declared = {canonicalize_name(requirement.name) for requirement in requirements(name)} | {name}
    for module in imported(SOURCES[name]):
        top = module.split(".")[0]
        if top not in sys.stdlib_module_names and (name, top) not in HANDED_IN:
            assert distribution(module) in declared, module


@pytest.mark.parametrize(("name", "lock"), [("isogloss", "client-lowest"), ("isogloss-server", "server-lowest")])
def test_the_lowest_versions_are_tested(name: str, lock: str) -> None:
    """The lowest version that is declared of each dependency is the one on which `make test-*-lowest` runs."""
    for requirement in requirements(name):
        of_unlocked_extra = requirement.marker and UNLOCKED_EXTRA in str(requirement.marker)
        if requirement.name not in SOURCES and not of_unlocked_extra:
            [lowest] = [Version(spec.version) for spec in requirement.specifier if spec.operator == ">="]
            assert pins(lock)[canonicalize_name(requirement.name)] == lowest, requirement.name


@pytest.mark.parametrize("name", SOURCES)
def test_the_lock_is_of_the_declared_dependencies(name: str) -> None:
    """The lock of the development environment holds a version that the metadata admits of each dependency."""
    locked = pins("development") | pins("sentence-transformers")
    for requirement in requirements(name):
        if requirement.name not in SOURCES:
            assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name


@pytest.mark.parametrize("lock", sorted(CONSTRAINTS.glob("*.txt")), ids=lambda lock: lock.stem)
def test_locks_name_hashes_and_no_index(lock: Path) -> None:
    """Every line of a lock is one version with its hashes; the file holds no address of an index."""
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^--(index|extra-index|find-links)", text, re.MULTILINE)
    pinned = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    for line in pinned:
        assert PIN.match(line), line
        assert line.endswith("\\") != (lock.stem in WITHOUT_HASHES), line
