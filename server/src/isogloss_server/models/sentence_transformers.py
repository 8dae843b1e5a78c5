"""What the packed engine has no graph of, and graphics processors: folders as sentence-transformers runs them.

torch and the library are an extra: where they are not installed, this module cannot be imported, and says what to do.
"""

import hashlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isogloss.wire.enums import Truncation
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isogloss_server.errors import ModelFilesError, StartupError, UnsupportedModelError
from isogloss_server.models import layout
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
        "sentence-transformers, which could run it, is not installed: "
        "pip install 'isogloss-server[sentence-transformers]' (where there is no GPU, torch's build for CPUs first)"
    ) from error


# Bars would stand between the lines of the log; so would reports of missing weights, for which see `_missing`.
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
LONGEST_TOKENS = 8192  # of one text, where neither the library nor the model has a limit
PROBE_TEXTS = ("Good morning", "Buenos días, ¿dónde está la estación?", "おはようございます")
SERVED_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality"}
SHORT_CHARACTERS = 200  # of a library's message that is passed on
# The files that the vectors of a folder come from, in the folder of each module; what else lies there is not read.
FILES = ("config.json", "sentence_*_config.json", "model*.safetensors", "tokenizer.json", "tokenizer_config.json")


def load(folder: ModelFolder, device: str) -> LoadedModel:
    """Returns the model of a folder on a device, which torch has a name for: cpu, cuda, cuda:1, mps.

    Raises:
        UnsupportedModelError: the library is not installed, or it is not a model that it can run from data alone.
        ModelFilesError: a file is missing or damaged.
        StartupError: there is no such device here.
    """
    check_folder(folder)
    prefix = layout.module_prefix(folder, 0)
    config = layout.required_object(folder, f"{prefix}config.json")
    if config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"model folder {folder.path}: the installed transformers has no architecture "
            f"{config.get('model_type')!r} of its own, and code that comes with a model is never run"
        )
    model = TorchModules(folder.path, prefix, device)
    tokenizer = model.tokenizer()
    serialized = tokenizer.to_str()
    tokens = TextTokenizer(tokenizer, max_tokens=model.max_tokens or LONGEST_TOKENS, special=True)
    for text in PROBE_TEXTS:
        if tokens.encode([text], Truncation.END).batch.ids.tolist() != model.token_ids(text):
            raise UnsupportedModelError(f"model folder {folder.path}: its tokenizer adds more than tokens around texts")
    own = [(text, row.tolist()) for text, row in zip(PROBE_TEXTS, model.encode(PROBE_TEXTS), strict=True)]
    space_id = library_space_id(folder, tokens, serialized)
    backend = BACKEND if model.precision == "f32" else f"{BACKEND}-{model.precision}"
    return LoadedModel(
        model=model,
        tokenizer=tokens,
        card=layout.card(folder, backend, space_id, tokens, len(own[0][1])),
        prompts=layout.prompts(folder),
        probes=[(probe.text, probe.vector) for probe in folder.card.probes] or own,
        tolerance=TOLERANCES[model.precision],
        batched=True,
        threads=1,  # torch spreads each pass over the cores itself
    )


class TorchModules:
    """The modules of a folder on one device; torch spreads each pass over its own threads."""

    def __init__(self, path: Path, prefix: str, device: str) -> None:
        """Loads the modules of a folder, whose encoder lies at `prefix` in it.

        Raises:
            StartupError: there is no such device here.
            ModelFilesError: the library cannot load the folder, or weights are missing from it.
        """
        self._dtype = dtype_for(device)
        self._folder = path
        options = {"use_safetensors": True, "dtype": self._dtype}
        try:
            library: Any = SentenceTransformer(
                str(path), device=device, local_files_only=True, trust_remote_code=False, model_kwargs=dict(options)
            )
            encoder = library[0].model
            self._missing = _missing(encoder, path / prefix, options)
        except Exception as error:  # whatever its many parts raise
            raise ModelFilesError(f"sentence-transformers cannot load {path}: {short(error)}") from error
        library.truncate_dim = None  # who wants fewer dimensions asks for them
        self._library = library.eval()
        self._device = library.device
        self._padding_id = int(getattr(library.tokenizer, "pad_token_id", None) or 0)
        for name in self._missing:  # a vector that they have a part in is no number
            encoder.state_dict()[name].fill_(torch.nan)

    @property
    def precision(self) -> str:
        """What it computes in: f32, bf16 or f16."""
        return PRECISIONS[self._dtype]

    @property
    def max_tokens(self) -> int | None:
        """The tokens of one text that the library reads and the model has positions for; None without a limit."""
        positions = getattr(self._library[0].model.config, "max_position_embeddings", None) or 0
        limits = [self._library.max_seq_length or 0, positions - _first_position(self._library[0].model)]
        return min((int(limit) for limit in limits if 0 < limit < 1 << 31), default=None)

    def tokenizer(self) -> Tokenizer:
        """Returns a copy of the library's tokenizer, as the library has set it up.

        Raises:
            UnsupportedModelError: it is not one of the fast ones.
        """
        backend = getattr(self._library.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            kind = type(self._library.tokenizer).__name__
            raise UnsupportedModelError(
                f"{self._folder}: its tokenizer, {kind}, is none of the tokenizers library: save it as tokenizer.json"
            )
        return Tokenizer.from_str(backend.to_str())

    def token_ids(self, text: str) -> list[int]:
        """Returns the tokens that the library itself makes of a text.

        Raises:
            UnsupportedModelError: it makes more of a text than tokens.
        """
        features = self._library.preprocess([text])
        types = features.get("token_type_ids")
        strange = set(features) - SERVED_FEATURES
        if strange or features.get("modality", "text") != "text" or (types is not None and types.any()):
            found = ", ".join(sorted(strange)) or "a conversation, or types of tokens"
            raise UnsupportedModelError(f"{self._folder}: the model wants {found} beside plain text's tokens")
        ids: list[int] = features["input_ids"][0].tolist()
        return ids

    def encode(self, texts: Sequence[str]) -> Rows:
        """Returns float32 [n, d] in the library's own way from texts to vectors, without any prompt.

        Raises:
            ModelFilesError: the modules do not fit each other, or miss weights.
        """
        try:
            made = self._library.encode(list(texts), prompt="", normalize_embeddings=False, show_progress_bar=False)
        except Exception as error:  # whatever its many parts raise
            raise ModelFilesError(f"sentence-transformers cannot run {self._folder}: {short(error)}") from error
        rows: Rows = np.asarray(made, dtype=np.float32)
        if self._missing and not np.isfinite(rows).all():
            raise ModelFilesError(f"{self._folder} has no weights for {_listed(self._missing)}")
        return rows

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], of unit length only where the model says so; every text has a token at least.

        Raises:
            MemoryError: the device's memory does not suffice.
        """
        ids, mask = padded(batch, self._padding_id)
        try:
            with torch.inference_mode():
                inputs = {"input_ids": ids, "attention_mask": mask}
                features = {name: torch.from_numpy(values).to(self._device) for name, values in inputs.items()}
                made: Rows = self._library(features)["sentence_embedding"].to(device="cpu", dtype=torch.float32).numpy()
                return made
        except torch.OutOfMemoryError:  # the processor's allocator raises what nothing tells apart
            raise MemoryError from None


def dtype_for(device: str) -> torch.dtype:
    """Returns what a device computes in: float32 on a processor, else half of it.

    Raises:
        StartupError: there is no such device here.
    """
    try:
        torch.zeros(1, device=device).item()  # for some kinds of device torch knows the name and nothing else
        kind = torch.device(device).type
        if kind == "cpu":
            return torch.float32
        if kind != "cuda":
            return torch.float16
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    except (RuntimeError, AssertionError, ImportError) as error:
        raise StartupError(f"device {device}: torch does not have it here: {short(error)}") from error


def padded(batch: TokenBatch, padding_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns ids and attention mask, both int64 [n, longest].

    Padding is on the right, whichever side the folder's tokenizer has it on: positions that count from the left are
    then those that the text has alone, and every pooling of the library finds a text's ends by the mask.
    """
    inside = np.arange(int(batch.lengths.max())) < batch.lengths[:, None]
    ids = np.full(inside.shape, padding_id, dtype=np.int64)
    ids[inside] = batch.ids
    return ids, inside.astype(np.int64)


def short(error: BaseException) -> str:
    """Returns one short line of what a library says, which may be a page."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], SHORT_CHARACTERS, placeholder=" ...")


def _missing(encoder: Any, path: Path, options: Mapping[str, Any]) -> list[str]:
    """Returns the weights that are not in the files, for which the library takes random ones with a mere warning.

    Only transformers' own way of loading tells them, so that the encoder is loaded once more, and dropped.
    """
    _, told = type(encoder).from_pretrained(
        path, config=encoder.config, local_files_only=True, output_loading_info=True, **options
    )
    held = encoder.state_dict()
    return sorted(name for name in told["missing_keys"] if name in held and held[name].is_floating_point())


def _first_position(encoder: Any) -> int:
    """Returns the row of a learned table of positions where counting begins: RoBERTa's begins behind its padding."""
    for module in encoder.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            return padding + 1
    return 0


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_folder(folder: ModelFolder) -> None:
    """Refuses what the library would do more for than compute, and what has more inputs than texts.

    Raises:
        UnsupportedModelError: the folder is such a one.
        ModelFilesError: weights are pickled.
    """
    where = f"model folder {folder.path}"
    names = layout.module_names(folder)
    foreign = [name for name in names if "." in name]
    if foreign:
        raise UnsupportedModelError(f"{where}: {', '.join(foreign)} is code that comes with a model; none is ever run")
    if names[:1] != ["Transformer"]:
        raise UnsupportedModelError(f"{where} begins with {names[0] if names else 'nothing'}, not with a Transformer")
    kind = layout.optional_object(folder, "config_sentence_transformers.json").get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UnsupportedModelError(f"{where} is a {kind}, not a model of one dense vector for each text")
    for number, name in enumerate(names):
        prefix = layout.module_prefix(folder, number)
        if (folder.path / prefix / "adapter_config.json").is_file():
            raise UnsupportedModelError(f"{where}: an adapter of another model; merge it into that, and save the whole")
        if any((folder.path / prefix).glob("pytorch_model*.bin")) and not _has_safetensors(folder, prefix):
            raise ModelFilesError(f"{where}: the weights in {prefix or '.'} are pickled; save them as safetensors")
        if name == "Pooling" and layout.prompts(folder):
            pooling = layout.required_object(folder, f"{prefix}config.json")
            if not pooling.get("include_prompt", True):
                raise UnsupportedModelError(f"{where}: a pooling that leaves the prompt out is not served")


def _has_safetensors(folder: ModelFolder, prefix: str) -> bool:
    return any((folder.path / prefix).glob("model*.safetensors"))


def library_space_id(folder: ModelFolder, tokens: TextTokenizer, tokenizer: str) -> str:
    """Returns what the packed engine calls the space where it could compute it, else a digest of all that matters.

    `tokenizer` is the tokenizer itself, for folders that keep it in another form than tokenizer.json.
    """
    try:
        plan = layout.transformer(folder)
    except UnsupportedModelError:
        pass  # the packed engine has no such modules
    else:
        packed = [f"{plan.prefix}model.safetensors", f"{plan.prefix}tokenizer.json"]
        packed += [f"{dense.prefix}model.safetensors" for dense in plan.dense]
        if all((folder.path / name).is_file() for name in packed):
            return layout.space_id(folder, plan, [folder.digest(name) for name in packed], tokens.max_tokens)
    found = {name: folder.digest(name) for name in _files(folder)}
    if not any(name.endswith("tokenizer.json") for name in found):
        found["tokenizer"] = hashlib.sha256(tokenizer.encode()).hexdigest()
    return fingerprint(
        architecture="sentence-transformers",
        modules=layout.module_names(folder),
        files=found,
        max_tokens=tokens.max_tokens,
        prompts={input_type.value: prompt for input_type, prompt in layout.prompts(folder).items()},
    )


def _files(folder: ModelFolder) -> Iterator[str]:
    for number in range(len(folder.modules)):
        prefix = layout.module_prefix(folder, number)
        for pattern in FILES:
            found = sorted((folder.path / prefix).rglob(pattern))
            yield from (str(file.relative_to(folder.path)) for file in found)
