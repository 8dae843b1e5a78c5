"""The sentence-transformers backend: GPUs, and architectures that the openvino backend does not support.

torch and the library are an extra. If they are not installed, importing this module raises UnsupportedModelError with
the command that installs them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from isogloss.wire.enums import Truncation
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError, first_line
from isogloss_server.models import layout, tokenizer_files
from isogloss_server.models.interfaces import Rows, TokenBatch, Tolerance
from isogloss_server.models.layout import LoadedModel
from isogloss_server.models.model_folder import ModelFolder, fingerprint
from isogloss_server.models.tokenizer import TextTokenizer

try:
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
except ModuleNotFoundError as error:
    raise UnsupportedModelError(
        "the sentence-transformers backend is not installed: pip install 'isogloss-server[sentence-transformers]' "
        "(on a machine without a GPU, install torch's CPU build first)"
    ) from error


# Progress bars and reports of missing weights would mix with the lines of the log; see `_missing_weights`.
_logging: Any = transformers.utils.logging
_logging.disable_progress_bar()
_logging.disable_default_handler()
_logging.enable_propagation()
_logging.set_verbosity_error()

BACKEND = "sentence-transformers"
TOLERANCES = {
    "f32": Tolerance(known=1e-5, batch_invariance=1e-5),
    "bf16": Tolerance(known=3e-2, batch_invariance=3e-2),
    "f16": Tolerance(known=5e-3, batch_invariance=5e-3),
}
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
DEFAULT_MAX_TOKENS = 8192  # of one text, if neither the library nor the model has a limit
PROBE_TEXTS = ("Good morning", "Buenos días, ¿dónde está la estación?", "おはようございます")
SUPPORTED_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality"}
# The files that determine the vectors, in the folder of each module.
FILES = ("config.json", "sentence_*_config.json", "model*.safetensors", "tokenizer.json", "tokenizer_config.json")


def load(folder: ModelFolder, device: str) -> LoadedModel:
    """Loads the model of a folder.

    Args:
        folder: The folder.
        device: Torch's name of the device, such as cpu, cuda, cuda:1 or mps.

    Raises:
        UnsupportedModelError: The library does not support the model without code of the model's repository.
        ModelFilesError: A file is missing or damaged.
        StartupError: The device is not available.
    """
    check_folder(folder)
    prefix = layout.module_prefix(folder, 0)
    config = layout.required_object(folder, f"{prefix}config.json")
    if config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model folder {folder.path}: the installed transformers does not support model_type "
            f"{config.get('model_type')!r}, and code in a model's repository is never run"
        )
    layout.check_sizes(config, folder.path / prefix / "config.json")
    with folder.library_copy() as path:
        model = TorchModules(path, prefix, device, folder.path)
    library_tokenizer = model.tokenizer()
    serialized = library_tokenizer.to_str()
    tokenizer = TextTokenizer(library_tokenizer, max_tokens=model.max_tokens or DEFAULT_MAX_TOKENS, special=True)
    for text in PROBE_TEXTS:
        if tokenizer.encode([text], Truncation.END).batch.ids.tolist() != model.token_ids(text):
            raise UnsupportedModelError(
                f"model folder {folder.path}: unsupported tokenizer: it adds more than tokens around texts"
            )
    own = [(text, row.tolist()) for text, row in zip(PROBE_TEXTS, model.encode(PROBE_TEXTS), strict=True)]
    space_id = library_space_id(folder, tokenizer, library_tokenizer, serialized)
    backend = BACKEND if model.precision == "f32" else f"{BACKEND}-{model.precision}"
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        card=layout.card(folder, backend, space_id, tokenizer, len(own[0][1])),
        prompts=layout.prompts(folder),
        probes=[(probe.text, probe.vector) for probe in folder.card.probes] or own,
        tolerance=TOLERANCES[model.precision],
        batched=True,
        threads=1,  # torch parallelizes each batch itself
        positions=lambda lengths: len(lengths) * int(lengths.max()),
    )


class TorchModules:
    """The modules of a folder on one device; torch parallelizes each batch over its own threads."""

    def __init__(self, path: Path, prefix: str, device: str, shown: Path) -> None:
        """Loads the modules of a folder.

        Args:
            path: The folder.
            prefix: Path of the encoder's files in the folder.
            device: Torch's name of the device.
            shown: The folder's path in errors.

        Raises:
            StartupError: The device is not available.
            ModelFilesError: The library cannot load the folder.
        """
        self._dtype = dtype_for(device)
        self._folder = shown
        options = {"use_safetensors": True, "dtype": self._dtype}
        try:
            library: Any = SentenceTransformer(
                str(path), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=dict(options)
            )
            encoder = library[0].model
            self._missing = _missing_weights(encoder, path / prefix, options)
        except Exception as error:  # the library raises exceptions of many packages
            cause = first_line(error).replace(str(path), str(shown))
            raise ModelFilesError(f"sentence-transformers cannot load {shown}: {cause}") from error
        library.truncate_dim = None  # the server truncates vectors itself
        self._library = library.eval()
        self._device = library.device
        self._padding_id = int(getattr(library.tokenizer, "pad_token_id", None) or 0)
        for name in self._missing:  # so that vectors computed with them are NaN
            encoder.state_dict()[name].fill_(torch.nan)

    @property
    def precision(self) -> str:
        """The number format of the computation: f32, bf16 or f16."""
        return PRECISIONS[self._dtype]

    @property
    def max_tokens(self) -> int | None:
        """The limit of one text in tokens, of the library and of the model's positions; None without a limit."""
        positions = getattr(self._library[0].model.config, "max_position_embeddings", None) or 0
        limits = [self._library.max_seq_length or 0, positions - _first_position(self._library[0].model)]
        return min((int(limit) for limit in limits if 0 < limit < 1 << 31), default=None)

    def tokenizer(self) -> Tokenizer:
        """Returns a copy of the library's tokenizer.

        Raises:
            UnsupportedModelError: It is not a fast tokenizer (of the tokenizers library).
        """
        backend = getattr(self._library.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            kind = type(self._library.tokenizer).__name__
            raise UnsupportedModelError(
                f"{self._folder}: unsupported tokenizer {kind}; save it as tokenizer.json, of the tokenizers library"
            )
        return Tokenizer.from_str(backend.to_str())

    def token_ids(self, text: str) -> list[int]:
        """Tokenizes a text with the library itself.

        Raises:
            UnsupportedModelError: The model has inputs other than the tokens of plain text.
        """
        features = self._library.preprocess([text])
        types = features.get("token_type_ids")
        unsupported = set(features) - SUPPORTED_FEATURES
        if unsupported or features.get("modality", "text") != "text" or (types is not None and types.any()):
            names = ", ".join(sorted(unsupported)) or "a conversation, or token types"
            raise UnsupportedModelError(f"{self._folder}: unsupported inputs beside the tokens of plain text: {names}")
        ids: list[int] = features["input_ids"][0].tolist()
        return ids

    def encode(self, texts: Sequence[str]) -> Rows:
        """Embeds texts with the library itself, without a prompt.

        Returns:
            float32 [n, d].

        Raises:
            ModelFilesError: The modules do not fit together, or weights are missing.
        """
        try:
            vectors = self._library.encode(list(texts), prompt="", normalize_embeddings=False, show_progress_bar=False)
        except Exception as error:  # the library raises exceptions of many packages
            raise ModelFilesError(f"sentence-transformers cannot run {self._folder}: {first_line(error)}") from error
        rows: Rows = np.asarray(vectors, dtype=np.float32)
        if self._missing and not np.isfinite(rows).all():
            raise ModelFilesError(f"{self._folder} has no weights for {_listed(self._missing)}")
        return rows

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], of unit length if the model has a Normalize module; each text has at least one token.

        Raises:
            MemoryError: The device is out of memory.
        """
        ids, mask = padded(batch, self._padding_id)
        try:
            with torch.inference_mode():
                inputs = {"input_ids": ids, "attention_mask": mask}
                features = {name: torch.from_numpy(values).to(self._device) for name, values in inputs.items()}
                vectors = self._library(features)["sentence_embedding"]
                rows: Rows = vectors.to(device="cpu", dtype=torch.float32).numpy()
                return rows
        except torch.OutOfMemoryError:  # of GPUs; on the CPU, torch raises a RuntimeError that cannot be recognised
            raise MemoryError from None


def dtype_for(device: str) -> torch.dtype:
    """Returns the number format for a device: float32 on a CPU; else bfloat16 if supported, else float16.

    Raises:
        StartupError: The device is not available.
    """
    try:
        torch.zeros(1, device=device).item()  # fails for devices that torch does not support here
        kind = torch.device(device).type
        if kind == "cpu":
            return torch.float32
        if kind != "cuda":
            return torch.float16
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    except (RuntimeError, AssertionError, ImportError) as error:
        raise StartupError(f"device {device} is not available to torch: {first_line(error)}") from error


def padded(batch: TokenBatch, padding_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pads a batch.

    Padding is on the right, on whichever side the folder's tokenizer has it: positions, which count from the left, are
    then those of the text alone, and the library's poolings find the ends of a text by the mask.

    Returns:
        Ids and attention mask, both int64 [n, longest].
    """
    inside = np.arange(int(batch.lengths.max())) < batch.lengths[:, None]
    ids = np.full(inside.shape, padding_id, dtype=np.int64)
    ids[inside] = batch.ids
    return ids, inside.astype(np.int64)


def _missing_weights(encoder: Any, path: Path, options: Mapping[str, Any]) -> list[str]:
    """Returns the names of weights that the files lack; the library initializes them at random, with a mere warning.

    Only transformers' own loader reports them, so the encoder is loaded a second time, and dropped.
    """
    _, report = type(encoder).from_pretrained(
        path, config=encoder.config, local_files_only=True, output_loading_info=True, **options
    )
    weights = encoder.state_dict()
    missing = (name for name in report["missing_keys"] if name in weights)
    return sorted(name for name in missing if weights[name].is_floating_point())


def _first_position(encoder: Any) -> int:
    """Returns the first used row of the table of positions: RoBERTa's positions start after the padding token's id."""
    for module in encoder.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding + 1
    return 0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_folder(folder: ModelFolder) -> None:
    """Rejects folders that need code of the model's repository, or inputs other than texts.

    Raises:
        UnsupportedModelError: The folder is one of those.
        ModelFilesError: The weights are pickled.
    """
    where = f"model folder {folder.path}"
    names = layout.module_names(folder)
    foreign = [name for name in names if "." in name]
    if foreign:
        raise UnsupportedModelError(
            f"{where}: {', '.join(foreign)} is code in the model's repository, which is never run"
        )
    if names[:1] != ["Transformer"]:
        raise UnsupportedModelError(
            f"{where}: the first module must be Transformer, not {names[0] if names else '(none)'}"
        )
    kind = layout.optional_object(folder, "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{where}: unsupported model_type {kind}; only models with one dense vector for each text are supported"
        )
    for number, name in enumerate(names):
        prefix = layout.module_prefix(folder, number)
        if folder.has(f"{prefix}adapter_config.json"):
            raise UnsupportedModelError(
                f"{where}: unsupported adapter; merge it into its base model, and save the result"
            )
        layout.reject_pickled_weights(folder, prefix)
        if name == "Pooling" and layout.prompts(folder):
            pooling = layout.required_object(folder, f"{prefix}config.json")
            if not pooling.get("include_prompt", True):
                raise UnsupportedModelError(f"{where}: unsupported include_prompt false in the pooling")


def library_space_id(folder: ModelFolder, tokenizer: TextTokenizer, effective: Tokenizer, serialized: str) -> str:
    """Returns the id of a folder's space: the same as in the openvino backend, if that supports the model.

    Args:
        folder: The folder.
        tokenizer: Has the limit of one text.
        effective: The library's tokenizer.
        serialized: The same as JSON, for folders without a tokenizer.json.
    """
    prefix = layout.module_prefix(folder, 0)
    difference = ""
    if folder.has(f"{prefix}tokenizer.json"):
        lower_case = bool(layout.input_settings(folder, prefix).get("do_lower_case"))
        difference = tokenizer_files.difference(effective, folder, prefix, lower_case=lower_case)
    try:
        plan = layout.transformer(folder)
    except UnsupportedModelError:
        pass  # the openvino backend does not support the modules
    else:
        files = [f"{plan.prefix}model.safetensors", f"{plan.prefix}tokenizer.json"]
        files += [f"{dense.prefix}model.safetensors" for dense in plan.dense]
        if all(map(folder.has, files)):
            digests = [folder.digest(name) for name in files]
            return layout.space_id(folder, plan, digests, tokenizer.max_tokens, tokenizer=difference)
    by_name = {name: folder.digest(name) for name in _files(folder)}
    if not any(name.endswith("tokenizer.json") for name in by_name):
        by_name["tokenizer"] = hashlib.sha256(serialized.encode()).hexdigest()
    return fingerprint(
        **({"tokenizer": difference} if difference else {}),
        architecture="sentence-transformers",
        modules=layout.module_names(folder),
        files=by_name,
        max_tokens=tokenizer.max_tokens,
        prompts={input_type.value: prompt for input_type, prompt in layout.prompts(folder).items()},
    )


def _files(folder: ModelFolder) -> Iterator[str]:
    for number in range(len(folder.modules)):
        prefix = layout.module_prefix(folder, number)
        for name in folder.names():
            if name.startswith(prefix) and any(fnmatchcase(PurePath(name).name, pattern) for pattern in FILES):
                yield name
