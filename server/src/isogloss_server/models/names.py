"""What a model's name stands for, before anything is looked up on a disk or the hub."""

import difflib
import re
from dataclasses import dataclass

from isogloss_server.models.catalog import KNOWN, KnownModel, find

MAIN = "main"
HOSTS = ("cohere", "openai")  # before a colon: the model runs at a provider, see providers.py
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model of the hub at a revision: what the name of a model stands for."""

    hub_id: str
    revision: str  # commit, tag or branch
    source: str  # as it was asked for
    known: KnownModel | None = None

    def __str__(self) -> str:
        return self.hub_id if self.revision == MAIN else f"{self.hub_id}@{self.revision}"


def resolve(source: str) -> Wanted | None:
    """Returns what `NAME` or `OWNER/NAME`, either with `@REVISION`, stands for, or None if it is no such thing.

    A known model is wanted at its pinned commit, another at the main branch, unless the source tells a revision.
    """
    name, _, revision = source.partition("@")
    known = find(name)
    if known is not None:
        return Wanted(known.hub_id, revision or known.revision, source, known)
    return Wanted(name, revision or MAIN, source) if HUB_ID.fullmatch(name) else None


def is_hosted(source: str) -> bool:
    """Returns whether a model's source names a provider."""
    host, colon, _ = source.partition(":")
    return bool(colon) and host in HOSTS


def like(name: str) -> str:
    """Returns the known name that is most like another, or nothing."""
    known = {model.name.lower(): model.name for model in KNOWN}
    return "".join(known[near] for near in difflib.get_close_matches(name.partition("@")[0].lower(), known, n=1))
