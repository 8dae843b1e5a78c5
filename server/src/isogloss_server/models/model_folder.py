"""Finds and verifies the files of a model: bundled, in a folder, or of the hub (hub.py).

A folder has the layout that sentence-transformers saves. It may also hold `isogloss.json`, with properties that the
layout lacks (licence, languages, offered dimensions), the sha256 of each file, and probes: texts with their known
vectors.
"""

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from isogloss_server.errors import ModelFilesError, SettingsError
from isogloss_server.models import catalog
from isogloss_server.models.cache_folder import BLOCK_BYTES, CacheFolder, MappedFile, blocks, mark_used, open_cache
from isogloss_server.models.catalog import HubModel, KnownModel

BUNDLED = "isogloss-static"
CARD_FILE = "isogloss.json"
MODULES_FILE = "modules.json"
MAX_SIZE = 1 << 24  # of a dimension, a vocabulary, a number of layers: none is larger
MAX_MESSAGE = 1_000  # characters of an error that quotes a file
SHA256 = re.compile("[0-9a-f]{64}")
# Only the files of the sentence-transformers layout: no pickled weights, no code, no graphs of other runtimes. A
# module's folder begins with its number; `*` also matches slashes, so no pattern may begin with it.
FILES = (
    CARD_FILE,
    MODULES_FILE,
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
)
TOKENIZER_FILES = ("spiece.model", "spm.model", "sentencepiece.model", "tokenizer.model", "chat_template.jinja")
MODULE_SUFFIXES = (".json", ".safetensors", ".txt", ".model")  # in the folder of a module
WEIGHTS = ".safetensors"
COPY = ".weights"  # suffix of a copy in the cache folder, after its sha256


class Probe(BaseModel):
    """A text and its known vector, float32 [d], as the model scales it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    vector: tuple[FiniteFloat, ...]


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
class ModelFile:
    """The content of a file of a model, as it was read."""

    path: Path  # the user's, for errors
    data: bytearray | memoryview
    digest: str  # sha256, hexadecimal
    mapped: MappedFile | None = None  # the copy that `data` is in; None if it was read into memory


class FolderFiles:
    """Reads each file of a folder once, so that all that is made of a file is made of the same bytes.

    A file that changes later, in place or by its name, changes nothing here. `changed` lists files that have changed
    since they were read, whose content may be half old and half new, or of another version than that of others.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path
        self._cache = cache
        self._files: dict[str, ModelFile] = {}
        self._states: dict[str, tuple[int, ...] | None] = {}  # of the files on disk when they were read; None: missing

    @cached_property
    def cache(self) -> CacheFolder | None:
        """The folder for copies and compiled graphs, opened on first use; None if there is none."""
        return open_cache(self._cache)

    def has(self, name: str) -> bool:
        """Returns True if there is such a file."""
        if name not in self._files and not (self.path / name).is_file():
            self._states.setdefault(name, None)
            return False
        return True

    def read(self, name: str) -> ModelFile:
        """Reads a file into memory.

        Raises:
            ModelFilesError: The file is missing or unreadable.
        """
        return self._once(name, _in_memory)

    def map(self, name: str) -> ModelFile:
        """Maps a copy of a file in the cache folder; if there can be no copy, reads the file into memory.

        Raises:
            ModelFilesError: The file is missing or unreadable.
        """
        return self._once(name, self._mapped)

    def _once(self, name: str, read: Callable[[Path, BinaryIO, int], ModelFile]) -> ModelFile:
        if name not in self._files:
            path = self.path / name
            try:
                with open(path, "rb", opener=_open_without_waiting) as stream:
                    status = _file_status(stream)
                    self._states.setdefault(name, _state(status))
                    self._files.setdefault(name, read(path, stream, status.st_size))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise ModelFilesError(f"model folder {self.path} has no file {name}") from error
            except OSError as error:
                raise ModelFilesError(f"cannot read {path}: {error.strerror}") from error
        return self._files[name]

    def _mapped(self, path: Path, stream: BinaryIO, size: int) -> ModelFile:
        copied = _copy(self.cache, stream, size) if self.cache and size else None
        if copied is None:
            stream.seek(0)
            return _in_memory(path, stream, size)
        mapped, digest = copied
        return ModelFile(path, mapped.data, digest, mapped)

    def changed(self) -> list[str]:
        """Returns the names of the files that are no longer those that were read."""
        return [name for name, state in self._states.items() if state != self._state(name)]

    def _state(self, name: str) -> tuple[int, ...] | None:
        try:
            return _state((self.path / name).stat())
        except OSError:
            return None


def _file_status(stream: BinaryIO) -> os.stat_result:
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError
    return status


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _in_memory(path: Path, stream: BinaryIO, size: int) -> ModelFile:
    """Reads a file in blocks, and hashes each while it is in the processor's cache."""
    data = bytearray(size)
    view, end, digest = memoryview(data), 0, hashlib.sha256()
    while count := stream.readinto(view[end : end + BLOCK_BYTES]):  # type: ignore[attr-defined]
        digest.update(view[end : end + count])
        end += count
    return ModelFile(path, data if end == size else data[:end], digest.hexdigest())


def _copy(cache: CacheFolder, source: BinaryIO, size: int) -> tuple[MappedFile, str] | None:
    """Returns a copy of a file in the cache folder and its digest, or None if it cannot be stored.

    A copy from an earlier start is compared with the source, byte for byte. If it differs, the source is read anew.
    """
    with contextlib.ExitStack() as opened:
        copies = cache.of_size(size, COPY)
        for copy in copies.values():
            opened.enter_context(copy)
        digest = hashlib.sha256()
        for block in blocks(source) if copies else ():
            digest.update(block)
            copies = {name: copy for name, copy in copies.items() if copy.read(len(block)) == block}
            if not copies:
                break
        found = copies.get(digest.hexdigest() + COPY)
        if found is not None:
            mark_used(found)
            return MappedFile(found), digest.hexdigest()
        digests: list[str] = []

        def write(copy: BinaryIO) -> str:
            """Writes the copy and returns its name."""
            digests.append(_write(source, copy))
            return digests[0] + COPY

        stored = cache.store(write, size)
        return (MappedFile(opened.enter_context(stored)), digests[0]) if stored else None


def _write(source: BinaryIO, copy: BinaryIO) -> str:
    """Copies a file from its start, and returns its sha256."""
    digest = hashlib.sha256()
    source.seek(0)
    for block in blocks(source):
        digest.update(block)
        copy.write(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in the sentence-transformers layout, with its metadata."""

    path: Path  # the user's
    card: CardFile
    modules: tuple[Mapping[str, object], ...]  # of modules.json, in order
    known: KnownModel | None = None  # its entry in the catalog, if it was named by it
    revision: str = ""  # of the weights: isogloss.json's, else the hub's commit
    files: FolderFiles = field(kw_only=True, compare=False)

    def has(self, name: str) -> bool:
        """Returns True if there is such a file."""
        return self.files.has(name)

    def read(self, name: str) -> ModelFile:
        """Reads a file into memory, as `FolderFiles.read`.

        Raises:
            ModelFilesError: The file is missing, unreadable or damaged.
        """
        return self._verified(name, self.files.read(name))

    def map(self, name: str) -> ModelFile:
        """Maps a copy of a file, as `FolderFiles.map`.

        Raises:
            ModelFilesError: The file is missing, unreadable or damaged.
        """
        return self._verified(name, self.files.map(name))

    def digest(self, name: str) -> str:
        """Returns the sha256 of a file in hexadecimal.

        Raises:
            ModelFilesError: The file is missing, unreadable or damaged.
        """
        return (self.map if name.endswith(WEIGHTS) else self.read)(name).digest

    def _verified(self, name: str, file: ModelFile) -> ModelFile:
        """Compares the digest of a file with that in isogloss.json, or in the hub's cache."""
        blob = file.path.resolve().name  # the hub's cache names large files by their sha256
        expected = self.card.files.get(name, blob if SHA256.fullmatch(blob) else file.digest)
        if file.digest != expected:
            raise ModelFilesError(f"{file.path} is damaged: its sha256 is {file.digest} instead of {expected}")
        return file

    def names(self) -> list[str]:
        """Returns the names of the files that a model may be loaded from, sorted."""
        folders = {str(module.get("path") or "") for module in self.modules} - {""}
        own = (file.name for file in self.path.iterdir())
        found = [name for name in own if is_model_file(name) or name in TOKENIZER_FILES]
        for folder in folders:
            inner = (self.path / folder).rglob("*")
            found += [str(file.relative_to(self.path)) for file in inner if file.suffix in MODULE_SUFFIXES]
        return sorted(name for name in found if self.has(name))

    @contextlib.contextmanager
    def library_copy(self) -> Iterator[Path]:
        """Yields a temporary folder with the files as read, for libraries that load models from folders.

        Weights in it are links to the mapped copies, which remain mapped after the folder has been removed.

        Raises:
            ModelFilesError: A file is missing, unreadable or damaged, or temporary files cannot be written.
        """
        try:
            with tempfile.TemporaryDirectory(prefix="isogloss-") as folder:
                for name in self.names():
                    self._copy_to(Path(folder) / name, name)
                yield Path(folder)
        except OSError as error:
            raise ModelFilesError(
                f"cannot write temporary files, which sentence-transformers requires: {error}; "
                "set TMPDIR to a folder that can be written"
            ) from error

    def _copy_to(self, target: Path, name: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = self.map(name) if name.endswith(WEIGHTS) else self.read(name)
        if file.mapped is None:
            target.write_bytes(file.data)
        else:
            target.symlink_to(file.mapped.path)


def is_model_file(name: str) -> bool:
    """Returns True if a model is loaded from the file, named by its path in the model."""
    return any(fnmatchcase(name, pattern) for pattern in FILES)


def locate(source: str, cache: Path | None = None, *, refresh: bool = False) -> ModelFolder:
    """Finds the files of a model, and downloads those that are not on this disk.

    Args:
        source: `isogloss-static`, which is bundled, else the path of an existing folder, else a known name or a hub id,
            either with `@REVISION`.
        cache: The folder for copies of weights and compiled graphs; without it, weights are read into memory.
        refresh: Also download what has changed on the hub since, if the revision is a branch.

    Raises:
        SettingsError: The model is unknown.
        ModelFilesError: The model is unavailable, or a file with its metadata is missing or damaged.
    """
    folder = local_folder(source)
    if folder is not None:
        return open_folder(folder, cache=cache)
    hub_model = catalog.resolve(source)
    if hub_model is None:
        raise unknown_model(source)
    from isogloss_server.models import hub  # noqa: PLC0415 - its library takes long to import

    local = None if refresh else hub.cached(hub_model)
    return open_folder(local or hub.download(hub_model), hub_model, cache)


def unknown_model(source: str) -> SettingsError:
    """Returns the error for an unknown model, with the closest known name."""
    near = catalog.closest_name(source)
    hint = f"did you mean {near!r}?" if near else "`isogloss-server models list` lists the known models"
    return SettingsError(f"unknown model {source!r}: neither bundled, a folder, a known name nor a hub id; {hint}")


def local_folder(source: str) -> Path | None:
    """Returns the bundled folder or an existing folder that a source names, or None.

    Raises:
        ModelFilesError: The folder is a repository of the hub's cache, without a revision that stands out.
    """
    if source == BUNDLED:
        return Path(str(resources.files("isogloss_server") / "bundled"))
    return _snapshot(Path(source).expanduser()) if is_folder(source) else None


def _snapshot(path: Path) -> Path:
    """Returns the revision in a repository of the hub's cache: that of main, else the only one; else `path`."""
    snapshots = path / "snapshots"
    if (path / MODULES_FILE).exists() or not snapshots.is_dir():
        return path
    try:
        commits = sorted(folder.name for folder in snapshots.iterdir() if folder.is_dir())
        main = path / "refs" / "main"
        commit = main.read_text(encoding="ascii").strip() if main.is_file() else ""
    except (OSError, ValueError) as error:
        raise ModelFilesError(f"cannot read {path}, a repository of the hub's cache: {error}") from error
    if commit not in commits:
        if len(commits) != 1:
            found = f"has the revisions {', '.join(commits)}; name the folder of one" if commits else "has no revision"
            raise ModelFilesError(f"{snapshots}, in a repository of the hub's cache, {found}")
        commit = commits[0]
    return snapshots / commit


def is_folder(source: str) -> bool:
    """Returns True if a model's source is the path of an accessible folder."""
    try:
        return Path(source).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long for a path, access denied, or an unknown user's home
        return False


def open_folder(path: Path, hub_model: HubModel | None = None, cache: Path | None = None) -> ModelFolder:
    """Reads the metadata of a folder.

    Args:
        path: The folder.
        hub_model: The model of the hub that the folder was downloaded from, if any.
        cache: The folder for copies of weights and compiled graphs.

    Raises:
        ModelFilesError: A file with metadata is missing or damaged.
    """
    files = FolderFiles(path, cache)
    modules = read_json(files.read(MODULES_FILE))
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelFilesError(f"{path / MODULES_FILE} is damaged: it must hold a list of modules")
    card = _card(files)
    is_snapshot = hub_model is not None or path.parent.name == "snapshots"
    commit = path.name if is_snapshot else ""  # the name of a folder in the hub's cache
    known = hub_model.known if hub_model else None
    return ModelFolder(path, card, tuple(modules), known, card.revision or commit, files=files)


def read_json(file: ModelFile) -> object:
    """Parses a JSON file.

    Raises:
        ModelFilesError: The file is not JSON.
    """
    try:
        return json.loads(bytes(file.data).decode())
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file.path} is damaged: {error}") from error


def integer(
    config: Mapping[str, Any], name: str, file: object, *, least: int = 1, most: int = MAX_SIZE, default: object = None
) -> int:
    """Returns an integer of a configuration.

    Args:
        config: The content of the file.
        name: The key.
        file: The path of the file, for errors.
        least: The lowest valid value.
        most: The highest valid value.
        default: The value if there is no such key; None if it is required.

    Raises:
        ModelFilesError: The key is missing, or its value is not an integer in the range.
    """
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        found = "which is missing" if name not in config else f"instead of {value!r}"
        raise ModelFilesError(f"{file}: {name} must be an integer from {least:,} to {most:,}, {found}"[:MAX_MESSAGE])
    return value


def flag(config: Mapping[str, Any], name: str, file: object, *, default: bool = False) -> bool:
    """Returns a Boolean of a configuration, `default` if it is missing or null.

    Raises:
        ModelFilesError: It is neither true nor false.
    """
    value = config.get(name)
    if not isinstance(value, bool | None):
        raise ModelFilesError(f"{file}: {name} must be true or false instead of {value!r}"[:MAX_MESSAGE])
    return default if value is None else value


def _card(files: FolderFiles) -> CardFile:
    if not files.has(CARD_FILE):
        return CardFile()
    try:
        return CardFile.model_validate(read_json(files.read(CARD_FILE)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFilesError(f"{files.path / CARD_FILE} is damaged: {where}: {first['msg']}") from error


def fingerprint(**parts: object) -> str:
    """Returns the id of a space: a digest of everything that determines its vectors, given as keyword arguments."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return "s1-" + hashlib.sha256(canonical.encode()).hexdigest()[:32]
