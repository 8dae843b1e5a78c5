"""Loads a folder in the sentence-transformers layout as a model that OpenVINO runs."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from isogloss.wire.enums import Truncation

from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models import layout, tokenizer_files
from isogloss_server.models.cache_folder import CacheFolder, MappedFile
from isogloss_server.models.interfaces import Tolerance
from isogloss_server.models.layout import LoadedModel, TransformerLayout
from isogloss_server.models.model_folder import ModelFolder
from isogloss_server.models.openvino import architecture, numpy_reference
from isogloss_server.models.openvino import graph as encoder_graph
from isogloss_server.models.openvino.architecture import Encoder
from isogloss_server.models.openvino.graph_cache import DEVICE, Compiled, compiled
from isogloss_server.models.openvino.model import Embeddings, OpenVinoModel, rounded_tokens
from isogloss_server.models.pooling import DenseLayer, Head
from isogloss_server.models.safetensors_file import Tensors
from isogloss_server.models.tokenizer import TextTokenizer

SLOW_TOKENIZER_FILES = ("vocab.txt", "vocab.json", "*.model")  # which sentence-transformers can convert
Precision = Literal["auto", "f32", "bf16"]
# Known vectors are those of float32. With AVX-512, results do not depend on the batch at all.
TOLERANCES = {"f32": Tolerance(known=1e-5, batch_invariance=1e-6), "bf16": Tolerance(known=1e-2, batch_invariance=2e-3)}
PROBE_TEXTS = ("Good morning, Straße!", "おはようございます")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings of the runtime."""

    precision: Precision
    threads: int  # batches at a time, one thread each


def load(folder: ModelFolder, runtime: Runtime) -> LoadedModel:
    """Loads the model of a folder.

    Raises:
        UnsupportedModelError: This runtime does not support the model.
        ModelFilesError: A file is missing or damaged.
        StartupError: The processor does not support the precision.
    """
    plan = layout.transformer(folder)
    encoder = architecture.read(plan.config, folder.path / f"{plan.prefix}config.json")
    precision = _resolved_precision(ov.Core(), runtime.precision)
    weights, tokenizer_json = f"{plan.prefix}model.safetensors", f"{plan.prefix}tokenizer.json"
    layout.reject_pickled_weights(folder, plan.prefix)
    _require(folder, weights, others=("model-*.safetensors",))
    _require(folder, tokenizer_json, others=SLOW_TOKENIZER_FILES)
    with ThreadPoolExecutor() as pool:  # in parallel: digests, tokenizer and compilation release the GIL
        reading = pool.submit(_tokenizer, folder, plan, encoder)
        file = folder.map(weights)
        tensors = Tensors(file.data, file.path, encoder.names.prefixes)
        config = _config(precision, runtime.threads)
        compiling = pool.submit(_compiled, folder.files.cache, encoder, tensors, config, weights=file.digest)
        head = _head(folder, plan, encoder)
        embeddings = _embeddings(encoder, tensors)
        tokenizer, difference = reading.result()
        probes = [(probe.text, probe.vector) for probe in folder.card.probes]
        probes = probes or _own_probes(encoder, tensors, embeddings, head, tokenizer)
        graph = compiling.result()
    names = (weights, tokenizer_json, *(f"{dense.prefix}model.safetensors" for dense in plan.dense))
    digests = list(map(folder.digest, names))
    space_id = layout.space_id(folder, plan, digests, tokenizer.max_tokens, tokenizer=difference)
    return LoadedModel(
        model=OpenVinoModel(graph, embeddings, head, threads=runtime.threads),
        tokenizer=tokenizer,
        card=layout.card(folder, f"openvino-{precision}", space_id, tokenizer, head.dimensions(encoder.hidden)),
        prompts=layout.prompts(folder),
        probes=probes,
        tolerance=TOLERANCES[precision],
        batched=True,
        release_pages=lambda: _release_pages(file.mapped, graph.memory),
        positions=lambda lengths: rounded_tokens(int(lengths.sum())),
    )


def _require(folder: ModelFolder, name: str, *, others: Sequence[str]) -> None:
    """Checks that a file exists.

    Raises:
        UnsupportedModelError: The file is missing, but there are others in its place that another runtime may read.
        ModelFilesError: There are none.
    """
    if not folder.has(name):
        path = folder.path / name
        if any(other for pattern in others for other in path.parent.glob(pattern)):
            raise UnsupportedModelError(
                f"model folder {folder.path} has no file {name}, which the openvino backend requires"
            )
        raise ModelFilesError(f"model folder {folder.path} has no file {name}")


def _release_pages(*files: MappedFile | None) -> None:
    """Releases the mapped pages: after the first batch, only rows of word embeddings are read again."""
    for file in files:
        if file is not None:
            file.release_pages()


def _resolved_precision(core: ov.Core, precision: Precision) -> str:
    has_bf16 = "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise StartupError("precision bf16 is not supported by this processor; use auto or f32")
    if precision == "auto":
        return "bf16" if has_bf16 else "f32"
    return precision


def _config(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": threads,  # batches at a time; two with one thread each are faster than one with two
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # other processes may use the same cores
    }


def _compiled(
    cache: CacheFolder | None, encoder: Encoder, tensors: Tensors, config: dict[str, Any], *, weights: str
) -> Compiled:
    """Returns the compiled graph of the encoder; `weights` is the digest of its weights."""
    builder = hashlib.sha256(Path(encoder_graph.__file__).read_bytes()).hexdigest()
    return compiled(
        cache,
        lambda: encoder_graph.build(encoder, tensors),
        config,
        weights=weights,
        encoder=repr(encoder),
        builder=builder,
    )


def _tokenizer(folder: ModelFolder, plan: TransformerLayout, encoder: Encoder) -> tuple[TextTokenizer, str]:
    """Returns the effective tokenizer, and its difference from tokenizer.json; see tokenizer_files."""
    file = folder.path / plan.prefix / "tokenizer.json"
    effective, difference = tokenizer_files.read_effective(folder, plan.prefix, plan.config, lower_case=plan.lower_case)
    limit = min(plan.max_tokens or encoder.max_tokens, encoder.max_tokens)
    tokenizer = TextTokenizer(effective, max_tokens=limit, special=True)
    if tokenizer.vocabulary_size > encoder.vocabulary:
        raise ModelFilesError(
            f"{file} has {tokenizer.vocabulary_size} tokens, but the table of embeddings has {encoder.vocabulary} rows"
        )
    return tokenizer, difference


def _embeddings(encoder: Encoder, tensors: Tensors) -> Embeddings:
    positions = tensors.get("embeddings.position_embeddings.weight", encoder.positions, encoder.hidden).whole()
    if encoder.types:
        types = tensors.get(encoder.names.types, encoder.types, encoder.hidden)
        positions = positions + types.rows(np.zeros(1, dtype=np.int64))
    words = tensors.get("embeddings.word_embeddings.weight", encoder.vocabulary, encoder.hidden)
    return Embeddings(words, positions, encoder.padding_id)


def _head(folder: ModelFolder, plan: TransformerLayout, encoder: Encoder) -> Head:
    layers = []
    width = encoder.hidden * len(plan.poolings)
    for dense in plan.dense:
        file = folder.map(f"{dense.prefix}model.safetensors")
        tensors = Tensors(file.data, file.path)
        weight = tensors.get("linear.weight", dense.outputs, width).whole()
        bias = tensors.get("linear.bias", dense.outputs).whole() if dense.bias else None
        layers.append(DenseLayer(weight, bias, tanh=dense.activation == "Tanh"))
        width = dense.outputs
    return Head(poolings=plan.poolings, dense=layers, normalize=plan.normalize)


def _own_probes(
    encoder: Encoder, tensors: Tensors, embeddings: Embeddings, head: Head, tokenizer: TextTokenizer
) -> list[tuple[str, tuple[float, ...]]]:
    """Computes known vectors with the numpy reference, for folders without probes of their own."""
    probes: list[tuple[str, tuple[float, ...]]] = []
    for text in PROBE_TEXTS:
        batch = tokenizer.encode([text], Truncation.END).batch
        encoded = numpy_reference.encode(encoder, tensors, embeddings.rows(batch))
        probes.append((text, tuple(head(encoded, batch.lengths)[0].tolist())))
    return probes
