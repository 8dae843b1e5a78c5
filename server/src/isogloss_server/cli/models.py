"""`isogloss-server models ...`: what is known, what is on this disk, and whether it computes what it should."""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from isogloss.wire.enums import Truncation

from isogloss_server import factory
from isogloss_server.engine import self_test
from isogloss_server.errors import ModelFilesError, ProviderSetupError
from isogloss_server.models import catalog, hub, layout, model_folder, parity, static
from isogloss_server.models.catalog import KNOWN, KnownModel, is_hosted
from isogloss_server.models.model_folder import BUNDLED, ModelFolder
from isogloss_server.models.providers import catalog as provider_catalog
from isogloss_server.settings.sources import load

HEADINGS = ("name", "dimensions", "tokens", "languages", "licence", "on this disk")


def run(flags: Mapping[str, Any]) -> int:
    """Runs one verb; returns the exit status.

    Raises:
        StartupError: a model cannot be had, or its files are damaged.
        SettingsError: a setting of the environment, such as the precision, is wrong.
    """
    asked = flags.get("model") or ()
    for source in [asked] if isinstance(asked, str) else asked:
        if is_hosted(source):
            hosted = provider_catalog.resolve(source)
            raise ProviderSetupError(f"{hosted.model} runs at {hosted.address}: nothing of it is on this disk")
    return VERBS[flags["models_verb"]](flags)


def list_models(flags: Mapping[str, Any]) -> int:
    """Prints a line for each model that has a name."""
    rows = [_bundled_row(), *map(_known_row, KNOWN)]
    if flags["json"]:
        say(json.dumps(rows, ensure_ascii=False, indent=1))
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
        say(line)
    return 0


def show(flags: Mapping[str, Any]) -> int:
    """Prints what is known of a model and, where it is on this disk, what its files say and what they make."""
    source = flags["model"]
    folder = _on_disk(source)
    if folder is not None:
        _say_facts((_known_facts(folder.known) if folder.known else {}) | _folder_facts(folder))
        card = factory.read(folder, load({})).card
        _say_facts({"backend": card.backend, "tokens": f"{card.max_tokens:,}", "space id": card.space_id})
        return 0
    wanted = catalog.resolve(source)
    if wanted is None:
        raise model_folder.unknown_model(source)
    _say_facts(
        {
            **(_known_facts(wanted.known) if wanted.known else {}),
            "hub id": wanted.hub_id,
            "revision": wanted.revision,
            "folder": f"not on this disk; isogloss-server models pull {source}",
        }
    )
    return 0


def pull(flags: Mapping[str, Any]) -> int:
    """Downloads models into the hub's cache, one after the other; prints where they are."""
    for source in flags["model"]:
        folder = model_folder.locate(source, refresh=True)
        at = f" at {folder.revision}" if folder.revision else ""
        say(f"{source}{at}: {folder.path}")
        if folder.known and folder.known.remark:
            say(f"{source}: {folder.known.remark}")
    return 0


def verify(flags: Mapping[str, Any]) -> int:
    """Loads a model, makes the start-up checks, and compares it with sentence-transformers where that is installed."""
    source = flags["model"]
    folder = model_folder.locate(source)
    parts = factory.read(folder, load({}))
    self_test.verify(
        lambda texts: parts.tokenizer.encode(texts, Truncation.END).batch,
        parts.model.forward,
        parts.probes,
        parts.tolerance,
    )
    say(f"{source}: {parts.card.backend}, space {parts.card.space_id}: the server's own checks passed")
    if not parity.is_available():
        say("sentence-transformers is not installed: its vectors were not compared")
        return 0
    found = list(parity.compare(folder, parts))
    for each in found:
        say(f"against sentence-transformers, {each}")
    if not all(each.is_faithful for each in found):
        raise ModelFilesError(f"{source}: its vectors are not those of sentence-transformers")
    return 0


def say(line: str) -> None:
    """Prints a line."""
    print(line)  # noqa: T201


def _say_facts(facts: Mapping[str, object]) -> None:
    for name, fact in facts.items():
        for number, line in enumerate(_wrapped(str(fact))):
            say(f"{name if number == 0 else '':<10}  {line}")


def _on_disk(source: str) -> ModelFolder | None:
    """Returns a model's folder if it is on this disk."""
    path = model_folder.local_folder(source)
    if path is not None:
        return model_folder.open_folder(path)
    wanted = catalog.resolve(source)
    path = hub.cached(wanted) if wanted else None
    return model_folder.open_folder(path, wanted) if path else None


def _known_row(known: KnownModel) -> dict[str, Any]:
    wanted = catalog.resolve(known.name)
    folder = hub.cached(wanted) if wanted else None
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


def _known_facts(known: KnownModel) -> dict[str, object]:
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


def _folder_facts(folder: ModelFolder) -> dict[str, object]:
    """Returns what the folder says, which replaces what is known, and its files with sizes and sha256."""
    held = [str(path.relative_to(folder.path)) for path in sorted(folder.path.rglob("*")) if path.is_file()]
    card = folder.card
    facts: dict[str, object] = {
        "revision": folder.revision,
        "licence": card.license,
        "languages": f"{len(card.languages)}: {' '.join(card.languages)}" if card.languages else "",
        "dimensions": " ".join(map(str, card.dimensions)),
        "modules": ", ".join(layout.module_names(folder)),
        "prompts": "\n".join(f"{input_type.value}: {prompt!r}" for input_type, prompt in layout.prompts(folder).items())
        or "none",
        "folder": folder.path,
        "files": "\n".join(
            f"{folder.digest(name)}  {folder.file(name).stat().st_size:>13,} bytes  {name}"
            for name in filter(hub.is_model_file, held)
        ),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _wrapped(fact: str) -> Iterable[str]:
    """Yields the lines of a fact; only long ones of words are broken, since columns are wider."""
    for line in fact.split("\n"):
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
