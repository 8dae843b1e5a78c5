"""A cache of compiled graphs on disk, by model, precision, processor and OpenVINO version; files are memory-mapped.

A file holds the graph as OpenVINO exports it, weights included, and its sha256 (32 bytes). A damaged or unwritable file
costs a compilation and is otherwise harmless.
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
    """A compiled graph, and the memory of its weights, which must outlive it."""

    graph: Any
    memory: MappedFile | None = None


class GraphCache:
    """The compiled graphs in one folder; without a folder, every graph is compiled."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def compiled(self, build: Callable[[], ov.Model], config: dict[str, Any], **parts: str) -> Compiled:
        """Returns a compiled graph, from the cache if it is there.

        Args:
            build: Builds the graph.
            config: OpenVINO's settings for it.
            **parts: What determines the graph, such as digests of weights; part of the key beside machine and config.
        """
        core = ov.Core()
        if self._folder is None:
            return Compiled(core.compile_model(build(), DEVICE, config))
        file = self._folder / f"{_key(core, config, parts)}.graph"
        graph = _read(core, file, config)
        if graph is None:
            compiled = core.compile_model(build(), DEVICE, config)
            _write(file, compiled)
            # Read back, since weights in a file are mapped pages, and those of a compilation are copies.
            graph = _read(core, file, config) or Compiled(compiled)
        return graph


def _key(core: ov.Core, config: dict[str, Any], parts: dict[str, str]) -> str:
    key = {
        **parts,
        "config": {name: str(value) for name, value in config.items()},
        "openvino": ov.get_version(),
        "processor": core.get_property(DEVICE, "FULL_DEVICE_NAME"),
        "capabilities": sorted(core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")),
    }
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _read(core: ov.Core, file: Path, config: dict[str, Any]) -> Compiled | None:
    if not file.is_file():
        return None
    try:
        memory = MappedFile(file)
        graph, digest = memory.data[:-DIGEST_BYTES], bytes(memory.data[-DIGEST_BYTES:])
        if hashlib.sha256(graph.data).digest() == digest:
            return Compiled(core.import_model(ov.Tensor(graph, shared_memory=True), DEVICE, config), memory)
        cause = "wrong digest"
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, empty, rejected by OpenVINO
        cause = str(error).splitlines()[0]
    logs.warning("cached graph is damaged; compiling it again", file=file, cause=cause)
    return None


def _write(file: Path, compiled: Any) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # In a temporary folder, so that no other process, in this container or another, has the same name.
        with tempfile.TemporaryDirectory(dir=file.parent, prefix="part-") as folder:
            partial_file = Path(folder) / file.name
            # The view is released first, also if writing fails: a buffer with views cannot be closed.
            with compiled.export_model() as exported, exported.getbuffer() as graph, partial_file.open("wb") as stream:
                stream.write(graph)
                stream.write(hashlib.sha256(graph).digest())
            partial_file.replace(file)
    except (OSError, RuntimeError) as error:  # RuntimeError: raised by OpenVINO
        logs.warning("cannot cache the compiled graph", file=file, cause=str(error).splitlines()[0])
