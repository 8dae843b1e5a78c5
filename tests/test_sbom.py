"""The SBOM of each distribution is valid and current; tests/packages checks those in the wheels."""

import re
import tomllib
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools import sbom

ROOT = Path(__file__).parents[1]
# The lines of NOTICE that name a source; all else there is prose.
SOURCE = re.compile(r"^  (\S.*)$|^Similarities of English texts were learned from (.+)\.$", re.MULTILINE)


@pytest.mark.parametrize("name", sbom.FILES)
def test_the_sbom_is_current(name: str) -> None:
    """The committed SBOM matches the metadata, the model and the sources; if not, run make sbom."""
    assert sbom.FILES[name].read_text(encoding="utf-8") == sbom.sbom(name)


@pytest.mark.parametrize("name", sbom.FILES)
def test_the_sbom_is_valid(name: str) -> None:
    """The SBOM satisfies the strict schema of CycloneDX 1.6, including its SPDX identifiers."""
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom.FILES[name].read_text(encoding="utf-8")) is None


def test_the_sources_are_those_of_the_notice() -> None:
    """What the bundled model was trained on has the names and licences that NOTICE has, and nothing is missing."""
    said = [first or second for first, second in SOURCE.findall((ROOT / "NOTICE").read_text(encoding="utf-8"))]
    entries = [entry for kind in tomllib.loads(sbom.SOURCES.read_text(encoding="utf-8")).values() for entry in kind]
    assert len(said) == len(entries)
    for line, entry in zip(said, entries, strict=True):
        assert line.startswith(entry["name"])
        licences = [re.search(rf"\b{re.escape(licence)}(?=,| and|$)", line) for licence in entry["licences"]]
        assert all(licences), line
