"""Compiled graphs on disk: compiled once for a model, precision, processor and OpenVINO, then mapped into memory.

A file is the graph as OpenVINO exports it, weights included, and 32 bytes of sha256 over that. A file that is damaged,
or that cannot be written, costs a compilation and nothing else.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from isogloss_server import logs
from isogloss_server.models.safetensors_file import MappedFile

DIGEST_BYTES = 32
DEVICE = "CPU"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph ready to run, and the memory that it reads its weights from, which must live as long."""

    graph: Any
    memory: MappedFile | None = None


class GraphCache:
    """The graphs in one folder; without a folder every graph is compiled."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def compiled(self, build: Callable[[], ov.Model], config: dict[str, Any], **parts: str) -> Compiled:
        """Returns the compiled graph of `build()`; `parts` with the machine's own facts are what makes it this one."""
        core = ov.Core()
        if self._folder is None:
            return Compiled(core.compile_model(build(), DEVICE, config))
        file = self._folder / f"{_key(core, config, parts)}.graph"
        found = _read(core, file, config)
        if found is None:
            compiled = core.compile_model(build(), DEVICE, config)
            _write(file, compiled)
            # Read, its weights are mapped pages, where the compiled one's are copies.
            found = _read(core, file, config) or Compiled(compiled)
        return found


def _key(core: ov.Core, config: dict[str, Any], parts: dict[str, str]) -> str:
    facts = {
        **parts,
        "config": {name: str(value) for name, value in config.items()},
        "openvino": ov.get_version(),
        "processor": core.get_property(DEVICE, "FULL_DEVICE_NAME"),
        "capabilities": sorted(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _read(core: ov.Core, file: Path, config: dict[str, Any]) -> Compiled | None:
    if not file.is_file():
        return None
    try:
        memory = MappedFile(file)
        graph, digest = memory.data[:-DIGEST_BYTES], bytes(memory.data[-DIGEST_BYTES:])
        if hashlib.sha256(graph.data).digest() == digest:
            return Compiled(core.import_model(ov.Tensor(graph, shared_memory=True), DEVICE, config), memory)
        why = "its digest is not that of its content"
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, empty, refused by OpenVINO
        why = str(error).splitlines()[0]
    logs.warning("a cached graph is damaged and is compiled anew", file=file, why=why)
    return None


def _write(file: Path, compiled: Any) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of a name that no other process has, in this container or another one; gone with its folder.
        with tempfile.TemporaryDirectory(dir=file.parent, prefix="part-") as folder:
            part = Path(folder) / file.name
            # The view is given up first, also where writing fails: its buffer cannot be closed while one is left.
            with compiled.export_model() as exported, exported.getbuffer() as graph, part.open("wb") as stream:
                stream.write(graph)
                stream.write(hashlib.sha256(graph).digest())
            part.replace(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: of OpenVINO
        logs.warning("the compiled graph is not kept", file=file, why=str(error).splitlines()[0])
