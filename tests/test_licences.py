"""The page of licences is current, and a package with another licence than those allowed is found."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from tools import licences
from tools.licences import LicenceError, Section

# Its packages are in an environment of their own, where `make test-sentence-transformers` checks the whole page.
APART = "isogloss-server[sentence-transformers]"
INSTALLED = licences.installed([".venv"])
PARTS = list(licences.sections(INSTALLED))


def distributions(folder: Path, **files: str) -> Mapping[str, metadata.Distribution]:
    """Returns distributions with the given metadata."""
    for name, text in files.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0+cpu\n{text}\n")
    return {part.metadata["Name"]: part for part in metadata.distributions(path=[str(folder)])}


@pytest.mark.parametrize("part", [part for part in PARTS if part.installation != APART], ids=str)
def test_the_page_is_current(part: Section) -> None:
    """Each section has the installed packages with their licences, all of them allowed; if not, run make licences."""
    committed = licences.PAGE.read_text(encoding="utf-8").split("\n## ")
    assert licences.section(part, INSTALLED).removeprefix("\n## ") in committed


def test_the_page_has_all_installations() -> None:
    """The page has a section for each distribution and each extra, in order, and the allowed licences."""
    lines = licences.PAGE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("## ")] == [
        *(f"## {part.installation}" for part in PARTS),
        "## Builds of PyTorch for GPUs",
    ]
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines} >= set(licences.FACTS["allowed"])


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT AND (Apache-2.0 OR GPL-2.0-only)", True),
        ("MIT AND GPL-3.0-only", False),
        ("LGPL-2.1-or-later", False),
        ("AGPL-3.0-or-later OR GPL-3.0-or-later WITH GCC-exception-3.1", False),
    ],
)
def test_one_choice_of_a_licence_must_be_allowed(expression: str, *, allowed: bool) -> None:
    """All licences that AND joins must be allowed, and one of those that OR joins."""
    assert licences.is_allowed(expression) == allowed


@pytest.mark.parametrize(
    ("stated", "error"),
    [
        ("License-Expression: GPL-3.0-only", "GPL-3.0-only is not allowed"),
        ("License: Free for friends", "'Free for friends' is not an SPDX expression"),
        ("Classifier: License :: OSI Approved :: BSD License", "BSD License' is not an SPDX expression"),
        ("Summary: no licence", "'' is not an SPDX expression"),
    ],
)
def test_a_licence_that_is_unknown_or_not_allowed_is_an_error(tmp_path: Path, stated: str, error: str) -> None:
    """The error names the package, however indirectly it is required, and its licence."""
    found = distributions(
        tmp_path,
        app="Requires-Dist: library[fast]",
        library='License: MIT\nProvides-Extra: fast\nRequires-Dist: speed; extra == "fast"',
        speed=stated,
    )
    with pytest.raises(LicenceError, match="speed: ") as raised:
        licences.section(Section("library[fast]", "library"), found)
    assert error in str(raised.value)


def test_packages_of_other_platforms_and_extras_are_left_out(tmp_path: Path) -> None:
    """The packages are those that a Linux installation without further extras has."""
    found = distributions(
        tmp_path,
        app='License: MIT\nRequires-Dist: here; sys_platform == "linux"\n'
        'Requires-Dist: there; sys_platform == "win32"\nProvides-Extra: more\nRequires-Dist: extra; extra == "more"',
        here="License: MIT",
    )
    assert licences.packages("app", found) == {"app", "here"}
    assert "| `here` | 1.0 | MIT |" in licences.section(Section("app", None), found)
    with pytest.raises(LicenceError, match="extra is required by app"):
        licences.packages("app[more]", found)
