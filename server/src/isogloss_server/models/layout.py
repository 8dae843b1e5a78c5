"""Reads a folder in the sentence-transformers layout: its modules, their settings, prompts and length limit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isogloss.wire.enums import InputType

from isogloss_server import logs
from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models.interfaces import Model, ModelCard, Positions, Tolerance, without_padding
from isogloss_server.models.model_folder import MAX_SIZE, ModelFolder, fingerprint, flag, integer, read_json
from isogloss_server.models.tokenizer import TextTokenizer

LIBRARY = "sentence_transformers."  # prefix of the library's own classes; others are code in the model's repository
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens")
# Before version 5.3, one switch for each pooling; several could be on.
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SETTINGS_NAMES = ("bert", "roberta", "distilbert", "camembert", "xlm-roberta")
# Keys of config.json that describe the file, the training or the library, and do not affect the vectors.
CONFIG_KEYS_WITHOUT_EFFECT = frozenset(
    {
        *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache"),
        *("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "gradient_checkpointing"),
        *("attention_dropout", "dropout", "seq_classif_dropout", "qa_dropout", "initializer_range"),
    }
)
DENSE_ACTIVATIONS = ("Tanh", "Identity")
CONFIG = "config_sentence_transformers.json"
PROMPT_NAMES = ("query", "document")  # which the library always has, empty unless the folder sets them
MAX_LAYERS = 1_000
SIZES = {  # of the encoder: key of config.json -> highest valid value
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers"), MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "num_attention_heads", "n_heads", "num_heads"), MAX_SIZE),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "vocab_size", "max_position_embeddings"), MAX_SIZE),
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer over the pooled vector, and the activation after it."""

    prefix: str  # path of its files in the folder, with a slash at the end
    outputs: int
    activation: str
    bias: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerLayout:
    """A folder's modules: an encoder, a pooling, any number of Dense, and optionally Normalize."""

    prefix: str  # path of the encoder's files in the folder: empty, or with a slash at the end
    config: Mapping[str, Any]  # the content of config.json
    max_tokens: int | None  # None if the folder does not set it
    lower_case: bool
    poolings: tuple[str, ...]  # concatenated in the pooled vector
    dense: tuple[Dense, ...]
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A local model, loaded but not yet tested."""

    model: Model
    tokenizer: TextTokenizer
    card: ModelCard
    prompts: Mapping[InputType, str]
    probes: Sequence[tuple[str, Sequence[float]]]  # texts with their known vectors
    tolerance: Tolerance
    batched: bool  # True if batches of several callers' texts are faster
    release_pages: Callable[[], None] = lambda: None  # after the self-test: frees memory that only loading needed
    threads: int | None = None  # batches at a time that the runtime requires; None: the setting's
    positions: Positions = without_padding


def module_names(folder: ModelFolder) -> list[str]:
    """Returns the classes of the folder's modules, in order; those of the library without their package."""
    kinds = [str(module.get("type", "")) for module in folder.modules]
    return [kind.rpartition(".")[2] if kind.startswith(LIBRARY) else kind for kind in kinds]


def module_prefix(folder: ModelFolder, number: int) -> str:
    """Returns the path of a module's files in the folder: empty, or with a slash at the end.

    Raises:
        ModelFilesError: The path leads out of the folder.
    """
    path = folder.modules[number].get("path") or ""
    if not isinstance(path, str) or "\0" in path:
        raise ModelFilesError(f"{folder.path / 'modules.json'}: the path of a module must be text instead of {path!r}")
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ModelFilesError(f"{folder.path / 'modules.json'}: the path {path!r} leads out of the folder")
    return f"{path}/" if path else ""


def transformer(folder: ModelFolder) -> TransformerLayout:
    """Reads the layout of a transformer model.

    Raises:
        UnsupportedModelError: The folder has other modules, or settings that are not supported.
        ModelFilesError: A file is missing or damaged.
    """
    names = module_names(folder)
    inner = names[2:-1] if names[-1:] == ["Normalize"] else names[2:]
    if names[:2] != ["Transformer", "Pooling"] or any(name != "Dense" for name in inner):
        raise UnsupportedModelError(
            f"model folder {folder.path}: unsupported modules {', '.join(names) or '(none)'}; the openvino backend "
            "supports Transformer, Pooling, Dense (any number), Normalize (optional), in this order"
        )
    prefix = module_prefix(folder, 0)
    settings = input_settings(folder, prefix)
    plan = TransformerLayout(
        prefix=prefix,
        config=required_object(folder, f"{prefix}config.json"),
        max_tokens=_max_tokens(folder, prefix, settings),
        lower_case=flag(settings, "do_lower_case", f"model folder {folder.path}"),
        poolings=_poolings(folder, f"{module_prefix(folder, 1)}config.json"),
        dense=tuple(_dense(folder, module_prefix(folder, 2 + number)) for number in range(len(inner))),
        normalize=names[-1] == "Normalize",
    )
    if folder.known and (plan.poolings, tuple(names)) != ((folder.known.pooling,), folder.known.modules):
        logs.warning("the model's files differ from its catalog entry", modules=names, pooling=plan.poolings)
    return plan


def space_id(
    folder: ModelFolder, plan: TransformerLayout, digests: Sequence[str], max_tokens: int, *, tokenizer: str = ""
) -> str:
    """Returns the id of a transformer's space, the same for each runtime.

    Args:
        folder: The folder.
        plan: Its layout.
        digests: The digests of its files.
        max_tokens: The limit of one text.
        tokenizer: The difference of its effective tokenizer from tokenizer.json, if any; see tokenizer_files.
    """
    return fingerprint(
        **({"tokenizer": tokenizer} if tokenizer else {}),
        architecture="transformer",
        config={name: fact for name, fact in plan.config.items() if name not in CONFIG_KEYS_WITHOUT_EFFECT},
        files=digests,
        max_tokens=max_tokens,
        lower_case=plan.lower_case,
        pooling=plan.poolings,
        dense=[dense.activation for dense in plan.dense],
        normalize=plan.normalize,
        prompts={input_type.value: prompt for input_type, prompt in prompts(folder).items()},
    )


def check_sizes(config: Mapping[str, Any], file: object) -> None:
    """Checks the sizes of an encoder of any family, some of which libraries accept although they are invalid.

    Raises:
        ModelFilesError: A size is out of its range.
    """
    for name, most in SIZES.items():
        if isinstance(config.get(name), int | float | str):
            integer(config, name, file, most=most)


def prompts(folder: ModelFolder) -> dict[InputType, str]:
    """Returns the non-empty prompts by input type: the folder's own, else the catalog's, else the default prompt.

    Some models name the prompt of documents `passage`.
    """
    config = optional_object(folder, CONFIG)
    own = config.get("prompts") or {}
    texts = isinstance(own, Mapping) and all(isinstance(prompt, str | None) for prompt in own.values())
    default_name = config.get("default_prompt_name")
    if not texts:
        raise ModelFilesError(f"{folder.path / CONFIG} is damaged: 'prompts' must be an object of texts")
    if default_name is not None and default_name not in [*own, *PROMPT_NAMES]:
        raise ModelFilesError(
            f"{folder.path / CONFIG}: default_prompt_name must be the name of a prompt instead of {default_name!r}"
        )
    known: Mapping[str, str] = {}
    if folder.known:  # the library saves empty prompts even if the model needs some
        known, own = folder.known.prompts, {name: prompt for name, prompt in own.items() if prompt}
    chosen = {input_type: own.get(input_type.value) for input_type in InputType}
    if chosen[InputType.DOCUMENT] is None:
        chosen[InputType.DOCUMENT] = own.get("passage")
    default = own.get(default_name, "")
    by_input_type = {
        input_type: known.get(input_type.value, default) if prompt is None else prompt
        for input_type, prompt in chosen.items()
    }
    return {input_type: prompt for input_type, prompt in by_input_type.items() if prompt}


def dimensions(folder: ModelFolder, own: int) -> tuple[int, ...]:
    """Returns the dimensions that the model offers, its `own` first: those of its card, else of the catalog.

    Raises:
        ModelFilesError: The card offers dimensions that the vectors do not have.
    """
    offered = folder.card.dimensions or (folder.known.dimensions if folder.known else ()) or (own,)
    if offered[0] != own or not all(0 < d <= own for d in offered):
        raise ModelFilesError(f"model folder {folder.path}: invalid dimensions {offered}; its vectors have {own}")
    return offered


def card(folder: ModelFolder, backend: str, space_id: str, tokenizer: TextTokenizer, own_dimensions: int) -> ModelCard:
    """Returns the description of a local model: the properties of its card, else of the catalog.

    Raises:
        ModelFilesError: The card offers dimensions that the vectors do not have.
    """
    by_input_type = prompts(folder)
    return ModelCard(
        backend=backend,
        space_id=space_id,
        dimensions=dimensions(folder, own_dimensions),
        max_tokens=tokenizer.max_tokens,
        revision=folder.revision,
        languages=folder.card.languages or (folder.known.languages if folder.known else ()),
        license=folder.card.license or (folder.known.license if folder.known else ""),
        has_roles=len(set(map(by_input_type.get, InputType))) > 1,
    )


def reject_pickled_weights(folder: ModelFolder, prefix: str) -> None:
    """Raises ModelFilesError if a module has only pickled weights: loading them could run code."""
    path = folder.path / prefix
    if any(path.glob("pytorch_model*.bin")) and not any(path.glob("model*.safetensors")):
        raise ModelFilesError(
            f"model folder {folder.path}: the weights in {prefix or '.'} are pickled, which are never loaded; "
            "save them as safetensors"
        )


def required_object(folder: ModelFolder, name: str) -> Mapping[str, Any]:
    """Returns the JSON object in a file; raises ModelFilesError if the file is missing or damaged."""
    content = read_json(folder.read(name))
    if not isinstance(content, dict):
        raise ModelFilesError(f"{folder.path / name} is damaged: it must hold an object")
    return content


def optional_object(folder: ModelFolder, name: str) -> Mapping[str, Any]:
    """Returns the JSON object in a file, empty if the file is missing; raises ModelFilesError if it is damaged."""
    return required_object(folder, name) if folder.has(name) else {}


def input_settings(folder: ModelFolder, prefix: str) -> Mapping[str, Any]:
    """Returns the settings of the encoder's inputs; older versions named their file after the architecture."""
    candidates = (optional_object(folder, f"{prefix}sentence_{name}_config.json") for name in SETTINGS_NAMES)
    return next(filter(None, candidates), {})


def _max_tokens(folder: ModelFolder, prefix: str, settings: Mapping[str, Any]) -> int | None:
    name, maximum = "max_seq_length", settings.get("max_seq_length")
    if maximum is None:
        name = "model_max_length"
        maximum = optional_object(folder, f"{prefix}tokenizer_config.json").get(name)
    is_number = isinstance(maximum, int | float) and not isinstance(maximum, bool)
    if maximum is not None and not (is_number and maximum >= 1 and maximum % 1 == 0):
        raise ModelFilesError(
            f"model folder {folder.path}: invalid length limit {maximum!r}; {name} must be an integer from 1"
        )
    return int(maximum) if maximum and maximum < 1 << 31 else None  # 1e30 in tokenizers without a limit


def _poolings(folder: ModelFolder, name: str) -> tuple[str, ...]:
    config, file = required_object(folder, name), folder.path / name
    switched = [mode for switch, mode in POOLING_SWITCHES.items() if flag(config, switch, file)]
    modes = config.get("pooling_mode") or switched
    poolings = (modes,) if isinstance(modes, str) else tuple(map(str, modes if isinstance(modes, list) else [modes]))
    if not poolings or any(pooling not in POOLINGS for pooling in poolings):
        raise UnsupportedModelError(
            f"{file}: unsupported pooling {', '.join(poolings) or '(none)'}; "
            f"the openvino backend supports {', '.join(POOLINGS)}"
        )
    if not flag(config, "include_prompt", file, default=True) and prompts(folder):
        raise UnsupportedModelError(f"{file}: unsupported include_prompt false; the openvino backend pools prompts too")
    return poolings


def _dense(folder: ModelFolder, prefix: str) -> Dense:
    name = f"{prefix}config.json"
    config, file = required_object(folder, name), folder.path / name
    activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    plain = config.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    plain = plain and config.get("module_output_name") in (None, "sentence_embedding")
    if activation not in DENSE_ACTIVATIONS or flag(config, "use_residual", file) or not plain:
        raise UnsupportedModelError(
            f"{file}: unsupported Dense; the openvino backend supports it over the "
            f"sentence's vector, without residual, followed by {' or '.join(DENSE_ACTIVATIONS)}"
        )
    return Dense(prefix, integer(config, "out_features", file), activation, flag(config, "bias", file, default=True))
