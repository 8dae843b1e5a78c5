"""What the server's metadata takes from the client: the version, which lives in one file, and so the very client."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

HERE = Path(__file__).parent
PLACES = (
    (HERE.parent / "client" / "src" / "isogloss" / "_version.py", r'^__version__ = "(.+)"$'),  # in the repository
    (HERE / "PKG-INFO", r"^Version: (.+)$"),  # in an sdist, which has it written down
)


def version() -> str:
    """Returns the version of both distributions."""
    for file, pattern in PLACES:
        if file.is_file() and (found := re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)):
            return found[1]
    raise FileNotFoundError("neither the client's _version.py nor PKG-INFO tells the version")


class CustomMetadataHook(MetadataHookInterface):
    """Adds the client of the same version to what the server requires."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the dependencies."""
        metadata["dependencies"] = [f"isogloss=={version()}", *self.config["requires"]]
