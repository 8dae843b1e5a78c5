"""A folder in the sentence-transformers layout to a packed model."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from isogloss.wire.enums import Truncation
from tokenizers import Tokenizer, normalizers

from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models import layout
from isogloss_server.models.interfaces import Tolerance
from isogloss_server.models.layout import LoadedModel, TransformerLayout
from isogloss_server.models.model_folder import ModelFolder
from isogloss_server.models.openvino import architecture, graph, numpy_reference
from isogloss_server.models.openvino.architecture import Encoder
from isogloss_server.models.openvino.graph_cache import DEVICE, Compiled, GraphCache
from isogloss_server.models.openvino.model import Embeddings, OpenVinoModel
from isogloss_server.models.pooling import DenseLayer, Head
from isogloss_server.models.safetensors_file import Tensors
from isogloss_server.models.tokenizer import TextTokenizer, read_tokenizer

# As tokenizer_config.json names what a tokenizer.json of BERT's kind settles.
BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


Precision = Literal["auto", "f32", "bf16"]


# Known vectors are float32's; company makes no difference at all where registers hold 16 numbers.
TOLERANCES = {"f32": Tolerance(known=1e-5, batch_invariance=1e-6), "bf16": Tolerance(known=1e-2, batch_invariance=2e-3)}


PROBE_TEXTS = ("Good morning, Straße!", "おはようございます")


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How a model is run."""

    precision: Precision
    threads: int  # passes at a time, a thread each
    graph_cache: Path | None  # folder for compiled graphs


def load(folder: ModelFolder, runtime: Runtime) -> LoadedModel:
    """Returns the packed model of a folder.

    Raises:
        ModelFilesError: a file is missing or damaged, or the folder holds a kind of model that is not served.
        StartupError: the processor does not have the precision.
    """
    plan = layout.transformer(folder)
    encoder = architecture.read(plan.config, folder.path / f"{plan.prefix}config.json")
    precision = _precision(ov.Core(), runtime.precision)
    weights, tokenizer = f"{plan.prefix}model.safetensors", f"{plan.prefix}tokenizer.json"
    for name in (weights, tokenizer):
        if not (folder.path / name).is_file():
            raise UnsupportedModelError(f"model folder {folder.path} has no file {name}")
    tensors = Tensors(folder.file(weights), encoder.names.prefixes)
    with ThreadPoolExecutor() as pool:  # all at once: digests, tokenizer and compilation release the interpreter
        digests = {
            name: pool.submit(folder.digest, name)
            for name in (weights, tokenizer, *(f"{dense.prefix}model.safetensors" for dense in plan.dense))
        }
        reading = pool.submit(_tokens, folder, plan, encoder)
        compiling = pool.submit(
            lambda: _compiled(encoder, tensors, precision, runtime, weights=digests[weights].result())
        )
        head = _head(folder, plan, encoder)
        embeddings = _embeddings(encoder, tensors)
        tokens = reading.result()
        probes = [(probe.text, probe.vector) for probe in folder.card.probes]
        probes = probes or _own_probes(encoder, tensors, embeddings, head, tokens)
        compiled = compiling.result()
    space_id = layout.space_id(folder, plan, [digest.result() for digest in digests.values()], tokens.max_tokens)
    return LoadedModel(
        model=OpenVinoModel(compiled, embeddings, head, threads=runtime.threads),
        tokenizer=tokens,
        card=layout.card(folder, f"openvino-{precision}", space_id, tokens, head.dimensions(encoder.hidden)),
        prompts=layout.prompts(folder),
        probes=probes,
        tolerance=TOLERANCES[precision],
        batched=True,
        release_pages=lambda: release_pages(tensors, compiled),
    )


def release_pages(tensors: Tensors, compiled: Compiled) -> None:
    """Of both files little is read again: rows of the table of words. The rest is repacked by the first pass."""
    tensors.release_pages()
    if compiled.memory is not None:
        compiled.memory.release_pages()


def _precision(core: ov.Core, wanted: Precision) -> str:
    has_bf16 = "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if wanted == "bf16" and not has_bf16:
        raise StartupError("precision bf16: this processor has no bf16 instructions; auto or f32 run on it")
    return "bf16" if has_bf16 and wanted == "auto" else "f32" if wanted == "auto" else wanted


def _compiled(encoder: Encoder, tensors: Tensors, precision: str, runtime: Runtime, *, weights: str) -> Compiled:
    """Returns the encoder's graph, ready to run; `weights` is their digest."""
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": runtime.threads,  # passes at a time; two of one thread do more than one of two
        "INFERENCE_NUM_THREADS": runtime.threads,
        "ENABLE_CPU_PINNING": False,  # the process may share its cores with others
    }
    builder = hashlib.sha256(Path(graph.__file__).read_bytes()).hexdigest()
    cache = GraphCache(runtime.graph_cache)
    return cache.compiled(
        lambda: graph.build(encoder, tensors), config, weights=weights, encoder=repr(encoder), builder=builder
    )


def _tokens(folder: ModelFolder, plan: TransformerLayout, encoder: Encoder) -> TextTokenizer:
    file = folder.file(f"{plan.prefix}tokenizer.json")
    tokenizer = read_tokenizer(file)
    _check_normalizer(tokenizer, layout.optional_object(folder, f"{plan.prefix}tokenizer_config.json"), file)
    if plan.lower_case:
        parts = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(parts)
    limit = min(plan.max_tokens or encoder.max_tokens, encoder.max_tokens)
    tokens = TextTokenizer(tokenizer, max_tokens=limit, special=True)
    if tokens.vocabulary_size > encoder.vocabulary:
        raise ModelFilesError(f"{file} has {tokens.vocabulary_size} tokens, the table {encoder.vocabulary} rows")
    return tokens


def _check_normalizer(tokenizer: Tokenizer, config: Mapping[str, Any], file: Path) -> None:
    """Refuses a folder whose two files about the tokenizer disagree: transformers would follow the other one."""
    if not isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        return
    for name, setting in BERT_SETTINGS.items():
        own = getattr(tokenizer.normalizer, setting)
        if config.get(name, own) != own:
            raise UnsupportedModelError(f"{file} says {setting} {own}, tokenizer_config.json {name} {config[name]}")


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
        tensors = Tensors(folder.file(f"{dense.prefix}model.safetensors"))
        weight = tensors.get("linear.weight", dense.outputs, width).whole()
        bias = tensors.get("linear.bias", dense.outputs).whole() if dense.bias else None
        layers.append(DenseLayer(weight, bias, tanh=dense.activation == "Tanh"))
        width = dense.outputs
    return Head(poolings=plan.poolings, dense=layers, normalize=plan.normalize)


def _own_probes(
    encoder: Encoder, tensors: Tensors, embeddings: Embeddings, head: Head, tokens: TextTokenizer
) -> list[tuple[str, tuple[float, ...]]]:
    """Returns what the packed graph must give, computed without it: a folder need not bring known vectors along."""
    probes: list[tuple[str, tuple[float, ...]]] = []
    for text in PROBE_TEXTS:
        batch = tokens.encode([text], Truncation.END).batch
        encoded = numpy_reference.encode(encoder, tensors, embeddings.rows(batch))
        probes.append((text, tuple(head(encoded, batch.lengths)[0].tolist())))
    return probes
