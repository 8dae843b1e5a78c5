"""Writes the SBOM that each wheel contains (PEP 770), in CycloneDX 1.6.

`python -m tools.sbom` writes the files, and `make sbom` runs it. An SBOM names the distribution and what it requires.
That of the server also has the bundled model, with the digests of its files and the data that it was trained on. An
SBOM depends only on the sources, so that each build of a version contains the same bytes.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import fixup_id
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = {
    "isogloss": ROOT / "client" / "isogloss.cdx.json",
    "isogloss-server": ROOT / "server" / "isogloss-server.cdx.json",
}
WHEEL_ROOT = ROOT / "server" / "src"
BUNDLED = WHEEL_ROOT / "isogloss_server" / "bundled"
MODEL = "isogloss-static"
SOURCES = ROOT / "training" / "sources.toml"  # the data and models that the bundled model was trained on
REQUIREMENT = "isogloss:requires-dist"  # name of a property: CycloneDX 1.6 has no version ranges


def main() -> None:
    """Writes all files."""
    for name, file in FILES.items():
        file.write_text(sbom(name), encoding="utf-8")


def sbom(name: str) -> str:
    """Returns the SBOM of a distribution as JSON."""
    bom = Bom()
    bom.metadata.timestamp = None  # optional, and different in each build
    bom.metadata.component = distribution = _distribution(name)
    required = list(_required(name))
    bom.components.update(required)
    bom.register_dependency(distribution, required)
    if name == "isogloss-server":
        model, sources = _bundled_model(), list(_sources())
        bom.components.update([model, *sources])
        bom.register_dependency(distribution, [model])
        bom.register_dependency(model, sources)
    bom.serial_number = uuid5(NAMESPACE_URL, name)
    bom.serial_number = uuid5(NAMESPACE_URL, JsonV1Dot6(bom).output_as_string())
    return f"{JsonV1Dot6(bom).output_as_string(indent=2)}\n"


def _distribution(name: str) -> Component:
    known = metadata.metadata(name)
    purl = PackageURL("pypi", name=name, version=known["Version"])
    return Component(
        name=name,
        version=known["Version"],
        type=ComponentType.LIBRARY if name == "isogloss" else ComponentType.APPLICATION,
        description=known["Summary"],
        licenses=_licences([known["License-Expression"]]),
        purl=purl,
        bom_ref=str(purl),
    )


def _required(name: str) -> Iterator[Component]:
    """Yields a component for each distribution that is required, always or by an extra."""
    by_name: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, metadata.requires(name) or []):
        by_name.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    for required, requirements in by_name.items():
        pinned = [spec.version for line in requirements for spec in line.specifier if spec.operator == "=="]
        optional = all(line.marker is not None and "extra" in str(line.marker) for line in requirements)
        purl = PackageURL("pypi", name=required, version=pinned[0] if pinned else None)
        yield Component(
            name=required,
            version=purl.version,
            scope=ComponentScope.OPTIONAL if optional else ComponentScope.REQUIRED,
            properties=[Property(name=REQUIREMENT, value=str(line)) for line in requirements],
            purl=purl,
            bom_ref=str(purl),
        )


def _bundled_model() -> Component:
    facts: dict[str, Any] = tomllib.loads((SOURCES.parent / "bundled.toml").read_text(encoding="utf-8"))
    licences = _licences([facts["license"]])
    files = [
        Component(
            name=str(file.relative_to(WHEEL_ROOT)),
            type=ComponentType.FILE,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(file.read_bytes()).hexdigest())],
            licenses=licences,
            bom_ref=f"file:{file.relative_to(WHEEL_ROOT)}",
        )
        for file in sorted(BUNDLED.iterdir())
    ]
    return Component(
        name=MODEL,
        version=facts["revision"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        description=f"Static embeddings for {len(facts['languages'])} languages, bundled with the server.",
        licenses=licences,
        components=files,
        bom_ref=f"model:{MODEL}",
    )


def _sources() -> Iterator[Component]:
    """Yields what the bundled model was trained on, which the wheel does not contain."""
    kinds = {"data": ComponentType.DATA, "models": ComponentType.MACHINE_LEARNING_MODEL}
    for kind, entries in tomllib.loads(SOURCES.read_text(encoding="utf-8")).items():
        for entry in entries:
            yield Component(
                name=entry["name"],
                type=kinds[kind],
                scope=ComponentScope.EXCLUDED,
                licenses=_licences(entry["licences"]),
                bom_ref=f"{kind}:{entry['name']}",
            )


def _licences(names: Sequence[str]) -> list[Any]:
    """Returns licences by their SPDX identifiers, such as CC-BY-4.0 for "CC BY 4.0", or by name if there is none."""
    factory = LicenseFactory()
    identifiers = {name: fixup_id(name.replace(" ", "-")) for name in names}
    return [
        factory.make_with_id(known) if known else factory.make_with_name(name) for name, known in identifiers.items()
    ]


if __name__ == "__main__":
    main()
