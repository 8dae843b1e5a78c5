"""A model's name or folder to verified local files: bundled, in a folder, or of the hub (hub.py).

A folder is laid out as sentence-transformers saves it. It may hold `isogloss.json` beside that, which says what the
layout does not (licence, languages, dimensions that may be asked for), the sha256 of each file, and probes: texts
with the vectors that the model must give for them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from isogloss_server.errors import ModelFilesError
from isogloss_server.models import catalog
from isogloss_server.models.catalog import HubModel, KnownModel

BUNDLED = "isogloss-static"


CARD_FILE = "isogloss.json"


SHA256 = re.compile("[0-9a-f]{64}")


class Probe(BaseModel):
    """A text and the vector, float32 [d] as the model scales it, that must come out for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    vector: tuple[float, ...]


class CardFile(BaseModel):
    """What stands in a folder's isogloss.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    revision: str = ""
    license: str = ""
    languages: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()  # that mean something alone as leading columns, the model's own first
    files: Mapping[str, str] = {}  # name -> sha256, hexadecimal
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in the sentence-transformers layout, with what it says of itself."""

    path: Path
    card: CardFile
    modules: tuple[Mapping[str, object], ...]  # of modules.json, in order
    known: KnownModel | None = None  # what the catalogue says of it, where it came by a name
    revision: str = ""  # of the weights: isogloss.json's, else the hub's commit

    def file(self, name: str) -> Path:
        """Returns the path of a file that must be there.

        Raises:
            ModelFilesError: it is not.
        """
        file = self.path / name
        if not file.is_file():
            raise ModelFilesError(f"model folder {self.path} has no file {name}")
        return file

    def digest(self, name: str) -> str:
        """Returns the sha256 of a file, hexadecimal, held against what isogloss.json or the hub's cache says it is.

        Raises:
            ModelFilesError: the file is missing, unreadable or damaged.
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
            raise ModelFilesError(f"{file} is damaged: its sha256 is {digest}, and should be {expected}")
        return digest


def locate(source: str, *, refresh: bool = False) -> ModelFolder:
    """Returns the files of a model.

    `source` is `isogloss-static`, which is bundled, else a folder's path if there is such a folder, else a name of the
    catalogue or a hub id, either with `@REVISION`. What is not on this disk is downloaded, and
    where `refresh` is set also what a branch has come to hold since.

    Raises:
        ModelFilesError: there is no such model, it cannot be had, or a file that describes it is missing or damaged.
    """
    folder = local_folder(source)
    if folder is not None:
        return open_folder(folder)
    hub_model = catalog.resolve(source)
    if hub_model is None:
        raise unknown_model(source)
    from isogloss_server.models import hub  # noqa: PLC0415 - its library takes longer to import than we to start

    here = None if refresh else hub.cached(hub_model)
    return open_folder(here or hub.download(hub_model), hub_model)


def unknown_model(source: str) -> ModelFilesError:
    """Returns the error for what names no model, with the known name that is most like it."""
    near = catalog.closest_name(source)
    hint = f"did you mean {near}?" if near else "`isogloss-server models list` lists the known ones"
    return ModelFilesError(f"model {source!r} is neither {BUNDLED!r}, a folder, a known name nor a hub id; {hint}")


def local_folder(source: str) -> Path | None:
    """Returns the folder that a model's source names without the hub: the bundled one, or an existing one."""
    if source == BUNDLED:
        return Path(str(resources.files("isogloss_server") / "bundled"))
    return Path(source).expanduser() if is_folder(source) else None


def is_folder(source: str) -> bool:
    """Returns whether a model's source is the path of a folder that can be looked into."""
    try:
        return Path(source).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long for a path, not allowed, or the home of nobody
        return False


def open_folder(path: Path, hub_model: HubModel | None = None) -> ModelFolder:
    """Returns a folder with what it says of itself, and what is known of it where it came from the hub.

    Raises:
        ModelFilesError: a file that describes it is missing or damaged.
    """
    if not (path / "modules.json").is_file():
        raise ModelFilesError(f"model folder {path} has no file modules.json")
    modules = read_json(path / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelFilesError(f"{path / 'modules.json'} is damaged: it must hold a list of modules")
    card = _card(path)
    commit = path.name if hub_model else ""  # the hub's cache names its folders so
    return ModelFolder(path, card, tuple(modules), hub_model.known if hub_model else None, card.revision or commit)


def read_json(file: Path) -> object:
    """Returns what a JSON file holds.

    Raises:
        ModelFilesError: the file is unreadable, or not JSON.
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
    """Returns a space's id: equal where, and only where, all that makes the space is equal."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "s1-" + hashlib.sha256(canonical.encode()).hexdigest()[:32]
