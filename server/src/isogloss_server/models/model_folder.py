"""Finds and verifies the files of a model: bundled, in a folder, or of the hub (hub.py).

A folder has the layout that sentence-transformers saves. It may also hold `isogloss.json`, with properties that the
layout lacks (licence, languages, offered dimensions), the sha256 of each file, and probes: texts with their known
vectors.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from isogloss_server.errors import ModelFilesError, SettingsError
from isogloss_server.models import catalog
from isogloss_server.models.catalog import HubModel, KnownModel

BUNDLED = "isogloss-static"
CARD_FILE = "isogloss.json"
SHA256 = re.compile("[0-9a-f]{64}")


class Probe(BaseModel):
    """A text and its known vector, float32 [d], as the model scales it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    vector: tuple[float, ...]


class CardFile(BaseModel):
    """The content of isogloss.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: str = ""
    license: str = ""
    languages: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()  # offered: the model's own first, then Matryoshka dimensions
    files: Mapping[str, str] = {}  # name -> sha256, hexadecimal
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in the sentence-transformers layout, with its metadata."""

    path: Path
    card: CardFile
    modules: tuple[Mapping[str, object], ...]  # of modules.json, in order
    known: KnownModel | None = None  # its entry in the catalog, if it was named by it
    revision: str = ""  # of the weights: isogloss.json's, else the hub's commit

    def file(self, name: str) -> Path:
        """Returns the path of a required file.

        Raises:
            ModelFilesError: The file is missing.
        """
        file = self.path / name
        if not file.is_file():
            raise ModelFilesError(f"model folder {self.path} has no file {name}")
        return file

    def digest(self, name: str) -> str:
        """Computes the sha256 of a file, and compares it with that in isogloss.json or in the hub's cache.

        Returns:
            The digest in hexadecimal.

        Raises:
            ModelFilesError: The file is missing, unreadable or damaged.
        """
        file = self.file(name)
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise ModelFilesError(f"cannot read {file}: {error.strerror}") from error
        blob = file.resolve().name  # the hub's cache names large files by their sha256
        expected = self.card.files.get(name, blob if SHA256.fullmatch(blob) else digest)
        if digest != expected:
            raise ModelFilesError(f"{file} is damaged: its sha256 is {digest} instead of {expected}")
        return digest


def locate(source: str, *, refresh: bool = False) -> ModelFolder:
    """Finds the files of a model, and downloads those that are not on this disk.

    Args:
        source: `isogloss-static`, which is bundled, else the path of an existing folder, else a known name or a hub id,
            either with `@REVISION`.
        refresh: Also download what has changed on the hub since, if the revision is a branch.

    Raises:
        SettingsError: The model is unknown.
        ModelFilesError: The model is unavailable, or a file with its metadata is missing or damaged.
    """
    folder = local_folder(source)
    if folder is not None:
        return open_folder(folder)
    hub_model = catalog.resolve(source)
    if hub_model is None:
        raise unknown_model(source)
    from isogloss_server.models import hub  # noqa: PLC0415 - its library takes long to import

    local = None if refresh else hub.cached(hub_model)
    return open_folder(local or hub.download(hub_model), hub_model)


def unknown_model(source: str) -> SettingsError:
    """Returns the error for an unknown model, with the closest known name."""
    near = catalog.closest_name(source)
    hint = f"did you mean {near!r}?" if near else "`isogloss-server models list` lists the known models"
    return SettingsError(f"unknown model {source!r}: neither bundled, a folder, a known name nor a hub id; {hint}")


def local_folder(source: str) -> Path | None:
    """Returns the bundled folder or an existing folder that a source names, or None."""
    if source == BUNDLED:
        return Path(str(resources.files("isogloss_server") / "bundled"))
    return Path(source).expanduser() if is_folder(source) else None


def is_folder(source: str) -> bool:
    """Returns True if a model's source is the path of an accessible folder."""
    try:
        return Path(source).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long for a path, access denied, or an unknown user's home
        return False


def open_folder(path: Path, hub_model: HubModel | None = None) -> ModelFolder:
    """Reads the metadata of a folder.

    Args:
        path: The folder.
        hub_model: The model of the hub that the folder was downloaded from, if any.

    Raises:
        ModelFilesError: A file with metadata is missing or damaged.
    """
    if not (path / "modules.json").is_file():
        raise ModelFilesError(f"model folder {path} has no file modules.json")
    modules = read_json(path / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelFilesError(f"{path / 'modules.json'} is damaged: it must hold a list of modules")
    card = _card(path)
    commit = path.name if hub_model else ""  # the name of a folder in the hub's cache
    return ModelFolder(path, card, tuple(modules), hub_model.known if hub_model else None, card.revision or commit)


def read_json(file: Path) -> object:
    """Parses a JSON file.

    Raises:
        ModelFilesError: The file is unreadable, or not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFilesError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ModelFilesError(f"{file} is damaged: {error}") from error


def _card(path: Path) -> CardFile:
    file = path / CARD_FILE
    if not file.is_file():
        return CardFile()
    try:
        return CardFile.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFilesError(f"{file} is damaged: {where}: {first['msg']}") from error


def fingerprint(**parts: object) -> str:
    """Returns the id of a space: a digest of everything that determines its vectors, given as keyword arguments."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "s1-" + hashlib.sha256(canonical.encode()).hexdigest()[:32]
