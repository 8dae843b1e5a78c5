"""Compiled graphs in the cache folder, by model, precision, processor and OpenVINO version.

A file holds the graph as OpenVINO exports it, weights included, and a digest of the key and the graph (32 bytes). The
digest detects damage, and a graph under the name of another one; that others cannot write to the folder is what makes
the graph trustworthy. A damaged or unwritable file costs a compilation and is otherwise harmless.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import openvino as ov

from isogloss_server import logs
from isogloss_server.errors import first_line
from isogloss_server.models.cache_folder import CacheFolder, MappedFile

DIGEST_BYTES = 32
DEVICE = "CPU"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled graph, and the memory of its weights, which must outlive it."""

    graph: Any
    memory: MappedFile | None = None


def compiled(
    folder: CacheFolder | None, build: Callable[[], ov.Model], config: dict[str, Any], **parts: str
) -> Compiled:
    """Returns a compiled graph, from the cache if it is there.

    Args:
        folder: The cache folder; without one, the graph is compiled.
        build: Builds the graph.
        config: OpenVINO's settings for it.
        **parts: What determines the graph, such as digests of weights; part of the key beside machine and config.
    """
    core = ov.Core()
    if folder is None:
        return Compiled(core.compile_model(build(), DEVICE, config))
    key = _key(core, config, parts)
    name = f"{key}.graph"
    cached = folder.read(name)
    graph = _import(core, cached, key, config) if cached else None
    if graph is None:
        new = core.compile_model(build(), DEVICE, config)
        stored = folder.store(lambda stream: _export(new, key, stream, name))
        # Read back, since weights in a file are mapped pages, and those of a compilation are copies.
        graph = (_import(core, stored, key, config) if stored else None) or Compiled(new)
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


def _import(core: ov.Core, stream: BinaryIO, key: str, config: dict[str, Any]) -> Compiled | None:
    try:
        with stream:
            memory = MappedFile(stream)
        content = np.frombuffer(memory.data, dtype=np.uint8)
        graph, digest = content[:-DIGEST_BYTES], bytes(content[-DIGEST_BYTES:])
        if _digest(key, graph) == digest:
            return Compiled(core.import_model(ov.Tensor(graph, shared_memory=True), DEVICE, config), memory)
        cause = "wrong digest"
    except (OSError, ValueError, RuntimeError) as error:  # unreadable, empty, rejected by OpenVINO
        cause = first_line(error)
    logs.warning("cached graph is damaged; compiling it again", key=key, cause=cause)
    return None


def _export(graph: Any, key: str, stream: BinaryIO, name: str) -> str:
    # The view is released first, also if writing fails: a buffer with views cannot be closed.
    with graph.export_model() as exported, exported.getbuffer() as content:
        stream.write(content)
        stream.write(_digest(key, content))
    return name


def _digest(key: str, graph: Any) -> bytes:
    digest = hashlib.sha256(key.encode())
    digest.update(graph)
    return digest.digest()
