"""`isogloss-server models`: lists, shows, downloads and verifies models."""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isogloss.wire.enums import Truncation

from isogloss_server import factory
from isogloss_server.engine import self_test
from isogloss_server.errors import ModelFilesError, SettingsError, StartupError
from isogloss_server.models import catalog, hub, layout, model_folder, parity, static
from isogloss_server.models.catalog import KNOWN, KnownModel, is_hosted
from isogloss_server.models.model_folder import BUNDLED, ModelFolder
from isogloss_server.models.providers import catalog as provider_catalog
from isogloss_server.settings.sources import configure_libraries, load

HEADINGS = ("name", "dimensions", "tokens", "languages", "licence", "on this disk")


def run(flags: Mapping[str, Any]) -> int:
    """Runs one verb.

    Args:
        flags: The verb as `models_verb`, and its arguments.

    Returns:
        The exit status.

    Raises:
        StartupError: A model is unavailable, or its files are damaged.
        SettingsError: A model is unknown, or a setting in the environment is invalid.
    """
    configure_libraries()
    given = flags.get("model") or ()
    sources = [given] if isinstance(given, str) else given
    for source in sources:
        if is_hosted(source):
            hosted = provider_catalog.resolve(source)
            raise SettingsError(f"{source} runs at {hosted.address}; it has no files on this disk")
    try:
        return VERBS[flags["models_verb"]](flags)
    except (StartupError, KeyboardInterrupt, SystemExit, BrokenPipeError):
        raise
    except BaseException as error:  # a library fails on the files, or panics, which is not an Exception
        raise factory.unexpected_error(", ".join(sources), error) from error


def list_models(flags: Mapping[str, Any]) -> int:
    """Prints one line for each known model."""
    rows = [_bundled_row(), *map(_catalog_row, KNOWN)]
    if flags["json"]:
        print_line(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    cells = [
        (
            row["name"],
            " ".join(map(str, row["dimensions"])),
            f"{row['max_tokens']:,}",
            str(len(row["languages"])),
            row["license"],
            "yes" if row["folder"] else "no",
        )
        for row in rows
    ]
    for line in _table([HEADINGS, *cells]):
        print_line(line)
    return 0


def show(flags: Mapping[str, Any]) -> int:
    """Prints the properties of a model and, if it is on this disk, those of its files."""
    source = flags["model"]
    folder = _on_disk(source)
    if folder is not None:
        card = factory.read(folder, load({})).card
        _print_properties((_catalog_properties(folder.known) if folder.known else {}) | _folder_properties(folder))
        _print_properties({"backend": card.backend, "tokens": f"{card.max_tokens:,}", "space id": card.space_id})
        return 0
    hub_model = catalog.resolve(source)
    if hub_model is None:
        raise model_folder.unknown_model(source)
    _print_properties(
        {
            **(_catalog_properties(hub_model.known) if hub_model.known else {}),
            "hub id": hub_model.hub_id,
            "revision": hub_model.revision,
            "folder": f"not on this disk; run `isogloss-server models pull {source}`",
        }
    )
    return 0


def pull(flags: Mapping[str, Any]) -> int:
    """Downloads models into the hub's cache, one after the other; prints their folders."""
    for source in flags["model"]:
        folder = model_folder.locate(source, refresh=True)
        at = f" at {folder.revision}" if folder.revision else ""
        print_line(f"{source}{at}: {folder.path}")
        if folder.known and folder.known.remark:
            print_line(f"{source}: {folder.known.remark}")
    return 0


def verify(flags: Mapping[str, Any]) -> int:
    """Loads a model, runs its self-test, and compares it with sentence-transformers if that is installed."""
    source = flags["model"]
    folder = model_folder.locate(source, load({}).graph_cache_folder)
    loaded = factory.read(folder, load({}))
    self_test.verify(
        lambda texts: loaded.tokenizer.encode(texts, Truncation.END).batch,
        loaded.model.forward,
        loaded.probes,
        loaded.tolerance,
    )
    print_line(f"{source}: {loaded.card.backend}, space {loaded.card.space_id}: passed the self-test")
    if not parity.is_available():
        print_line("sentence-transformers is not installed: vectors not compared")
        return 0
    comparisons = list(parity.compare(folder, loaded))
    for comparison in comparisons:
        print_line(f"compared with sentence-transformers, {comparison}")
    if not all(comparison.is_faithful for comparison in comparisons):
        raise ModelFilesError(f"{source}: its vectors differ from those of sentence-transformers")
    return 0


def print_line(line: str) -> None:
    """Prints a line."""
    print(line)  # noqa: T201


def _print_properties(properties: Mapping[str, object]) -> None:
    for name, value in properties.items():
        for number, line in enumerate(_wrapped(str(value))):
            print_line(f"{name if number == 0 else '':<10}  {line}")


def _on_disk(source: str) -> ModelFolder | None:
    """Returns a model's folder if it is on this disk, or None."""
    path = model_folder.local_folder(source)
    if path is not None:
        return model_folder.open_folder(path, cache=load({}).graph_cache_folder)
    hub_model = catalog.resolve(source)
    path = hub.cached(hub_model) if hub_model else None
    return model_folder.open_folder(path, hub_model, load({}).graph_cache_folder) if path else None


def _catalog_row(known: KnownModel) -> dict[str, Any]:
    hub_model = catalog.resolve(known.name)
    folder = hub.cached(hub_model) if hub_model else None
    row = {"name": known.name, **dataclasses.asdict(known), "source": known.source}
    return {**row, "folder": str(folder) if folder else None}


def _bundled_row() -> dict[str, Any]:
    folder = model_folder.locate(BUNDLED)
    return {
        "name": BUNDLED,
        "revision": folder.revision,
        "dimensions": folder.card.dimensions,
        "max_tokens": static.MAX_TOKENS,
        "languages": folder.card.languages,
        "license": folder.card.license,
        "backend": "static",
        "folder": str(folder.path),
    }


def _catalog_properties(known: KnownModel) -> dict[str, object]:
    return {
        "name": known.name,
        "hub id": known.hub_id,
        "source": known.source,
        "revision": known.revision,
        "licence": known.license,
        "languages": f"{len(known.languages)}: {' '.join(known.languages)}",
        "dimensions": " ".join(map(str, known.dimensions)),
        "tokens": f"{known.max_tokens:,}",
        "modules": ", ".join(known.modules),
        "pooling": known.pooling,
        "prompts": "\n".join(f"{input_type}: {prompt!r}" for input_type, prompt in known.prompts.items()) or "none",
        **({"remark": known.remark} if known.remark else {}),
    }


def _folder_properties(folder: ModelFolder) -> dict[str, object]:
    """Returns the properties in a folder's files, which override the catalog's, and the files with sizes and sha256."""
    names = [str(path.relative_to(folder.path)) for path in sorted(folder.path.rglob("*")) if path.is_file()]
    card = folder.card
    properties: dict[str, object] = {
        "revision": folder.revision,
        "licence": card.license,
        "languages": f"{len(card.languages)}: {' '.join(card.languages)}" if card.languages else "",
        "dimensions": " ".join(map(str, card.dimensions)),
        "modules": ", ".join(layout.module_names(folder)),
        "prompts": "\n".join(f"{input_type.value}: {prompt!r}" for input_type, prompt in layout.prompts(folder).items())
        or "none",
        "folder": folder.path,
        "files": "\n".join(
            f"{folder.digest(name)}  {(folder.path / name).stat().st_size:>13,} bytes  {name}"
            for name in filter(model_folder.is_model_file, names)
        ),
    }
    return {name: value for name, value in properties.items() if value}


def _wrapped(value: str) -> Iterable[str]:
    """Yields the lines of a value; wraps long prose, but not the lines of the table of files."""
    for line in value.split("\n"):
        yield from textwrap.wrap(line, 100) if len(line.split()) > 20 else [line]


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


VERBS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "list": list_models,
    "show": show,
    "pull": pull,
    "verify": verify,
}
