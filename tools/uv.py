"""Runs uv with the package indexes that pip is configured to use; uv itself reads none of pip's settings.

    python tools/uv.py pip install ...

Runs in an environment that holds both. A variable of uv that is already set wins over pip's setting.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

VARIABLES = {  # pip's setting: uv's variable, and what separates several values there
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "cert": ("SSL_CERT_FILE", " "),
}
STRENGTH = {"global": 0, "install": 1, ":env:": 2}  # sections of pip's configuration that hold for an installation


def variables(listing: str) -> dict[str, str]:
    """Returns uv's variables for the output of `pip config list`, whose lines are `section.setting='values'`."""
    settings = [line.partition("=")[::2] for line in listing.splitlines()]
    sections = sorted(
        (STRENGTH[name.rpartition(".")[0]], name.rpartition(".")[2], value)
        for name, value in settings
        if name.rpartition(".")[0] in STRENGTH
    )
    environment = {}
    for _, setting, value in sections:
        if setting in VARIABLES:
            variable, separator = VARIABLES[setting]
            environment[variable] = separator.join(ast.literal_eval(value).split())
    if "UV_INDEX" in environment:
        # pip takes the best version of any index, uv by default that of the first index with the name.
        environment["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return environment


def main() -> None:
    """Replaces this process by uv."""
    programs = Path(sys.executable).parent
    listed = subprocess.run([programs / "pip", "config", "list"], capture_output=True, text=True, check=True)
    os.execve(programs / "uv", ["uv", *sys.argv[1:]], {**variables(listed.stdout), **os.environ})


if __name__ == "__main__":
    main()
