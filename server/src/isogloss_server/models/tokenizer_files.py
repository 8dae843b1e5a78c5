"""The tokenizer that transformers makes of a folder's files, which may disagree with each other.

For most architectures, transformers builds the tokenizer anew: from the vocabulary in tokenizer.json, the settings in
tokenizer_config.json, and the defaults of a class. It ignores the normalizer, pre-tokenizer and post-processor in
tokenizer.json. The rules here are those of transformers 5: models/auto/tokenization_auto.py,
tokenization_utils_base.py, tokenization_utils_tokenizers.py, and models/*/tokenization_*.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from isogloss_server import logs
from isogloss_server.errors import UnsupportedModelError
from isogloss_server.models import layout
from isogloss_server.models.model_folder import ModelFolder
from isogloss_server.models.tokenizer import read_tokenizer, special_ids

# Classes that use tokenizer.json as it is; names without "Fast" at the end, here and below.
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
# The class of a folder that names none, by model_type.
DEFAULT_CLASSES = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
_BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "cls": "<s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
# The special tokens of the classes that build the tokenizer anew; tokenizer_config.json may name others.
SPECIAL_TOKENS: Mapping[str, Mapping[str, str]] = {
    "BertTokenizer": _BERT_TOKENS,
    "DistilBertTokenizer": _BERT_TOKENS,
    "RobertaTokenizer": _ROBERTA_TOKENS,
    "XLMRobertaTokenizer": _ROBERTA_TOKENS,
    "CamembertTokenizer": _ROBERTA_TOKENS,
}
MODELS: Mapping[str, type] = {
    "BertTokenizer": models.WordPiece,
    "DistilBertTokenizer": models.WordPiece,
    "RobertaTokenizer": models.BPE,
    "XLMRobertaTokenizer": models.Unigram,
    "CamembertTokenizer": models.Unigram,
}
CAMEMBERT_TOKENS = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
STANDARD_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
XLM_ROBERTA_UNKNOWN = 3  # id of the unknown token
# Settings that change how a text is tokenized, in ways that are not reproduced here.
UNSUPPORTED_SETTINGS = ("fast_tokenizer_files", "split_special_tokens", "init_inputs")


def read_effective(
    folder: ModelFolder, prefix: str, config: Mapping[str, Any], *, lower_case: bool
) -> tuple[Tokenizer, str]:
    """Returns the tokenizer of a folder as transformers and sentence-transformers make it.

    Args:
        folder: The folder, with a tokenizer.json.
        prefix: Path of the encoder's files in the folder.
        config: The content of its config.json.
        lower_case: True if sentence-transformers' own settings ask for lower case.

    Returns:
        The tokenizer, and its `difference` from tokenizer.json.

    Raises:
        ModelFilesError: A file is missing or damaged.
        UnsupportedModelError: The files ask for a tokenizer that is not reproduced here.
    """
    path, settings = folder.path / prefix, _settings(folder, prefix)
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    name = str(named or DEFAULT_CLASSES.get(str(config.get("model_type")), "")).removesuffix("Fast")
    unsupported = [key for key in UNSUPPORTED_SETTINGS if settings.get(key)]
    if unsupported:
        raise UnsupportedModelError(f"{path}/tokenizer_config.json: unsupported setting {unsupported[0]}")
    if name not in GENERIC and name not in MODELS:
        raise UnsupportedModelError(
            f"{path}: unsupported tokenizer_class {name!r}; supported: {', '.join((*GENERIC[:1], *MODELS))}"
        )
    tokenizer = _read(folder, prefix, lower_case=lower_case)
    found = _facts(tokenizer)
    declared = _declared_tokens(folder, prefix, settings, tokenizer)
    if name in MODELS:
        tokenizer = _rebuilt(name, tokenizer, settings, declared, path)
        if lower_case:
            _add_lower_case(tokenizer)
    else:
        tokens = {key: settings[key] for key in settings if key.endswith("_token")}
        _add_tokens(tokenizer, settings, declared, tokens)
    return tokenizer, _difference(_facts(tokenizer), found)


def difference(effective: Tokenizer, folder: ModelFolder, prefix: str, *, lower_case: bool) -> str:
    """Returns a digest of a folder's effective tokenizer; empty if tokenizer.json tokenizes texts in the same way.

    The id of a space includes it, since vectors of different tokenizers are not comparable.

    Args:
        effective: The tokenizer that is used, without padding and truncation.
        folder: The folder, with a tokenizer.json.
        prefix: Path of the encoder's files in the folder.
        lower_case: True if sentence-transformers' own settings ask for lower case.
    """
    return _difference(_facts(effective), _facts(_read(folder, prefix, lower_case=lower_case)))


def _read(folder: ModelFolder, prefix: str, *, lower_case: bool) -> Tokenizer:
    tokenizer = read_tokenizer(folder.read(f"{prefix}tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lower_case:
        _add_lower_case(tokenizer)
    return tokenizer


def _difference(used: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if used == found:
        return ""
    parts = [name for name in used if used[name] != found[name]]
    logs.warning("tokenizer.json and the settings of its class differ; the settings are used", differ=",".join(parts))
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()


def _facts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns all that determines the tokens of a text, except for the vocabulary, which only tokenizer.json has."""
    fields = ("single_word", "lstrip", "rstrip", "normalized")
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    return {
        "normalizer": _steps(tokenizer.normalizer, "normalizers"),
        "pre_tokenizer": _steps(tokenizer.pre_tokenizer, "pretokenizers"),
        "model": _model_facts(tokenizer.model),
        "special_tokens": _special_facts(tokenizer),
        "added_tokens": [
            [number, token.content, *(getattr(token, name) for name in fields)] for number, token in added
        ],
    }


def _special_facts(tokenizer: Tokenizer) -> list[list[int]] | None:
    try:
        return list(special_ids(tokenizer))
    except UnsupportedModelError:  # not a fault, if the tokenizer is not used
        return None


def _steps(component: Any, members: str) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or pre-tokenizer, flat, with defaults replaced by their values."""
    if component is None:
        return []
    pending, steps = [json.loads(component.__getstate__())], []
    while pending:
        step = pending.pop(0)
        if step["type"] == "Sequence":
            pending[:0] = step[members]
            continue
        if step["type"] == "BertNormalizer" and step["strip_accents"] is None:
            step["strip_accents"] = step["lowercase"]
        step.pop("trim_offsets", None)  # of ByteLevel: affects only positions in the text
        steps.append(step)
    return steps


def _model_facts(model: Any) -> dict[str, Any]:
    """Returns the options of a model; the vocabulary, of megabytes, is cut out of its state unparsed."""
    state: bytes = model.__getstate__()
    head, _, rest = state.partition(b'"vocab":')
    facts: dict[str, Any] = json.loads(head.rstrip(b",") + b"}")
    if facts["type"] == "Unigram":
        facts |= json.loads(b"{" + rest[rest.rindex(b"]") + 1 :].lstrip(b","))
    return {name: None if value == "" else value for name, value in facts.items()}


def _members(normalizer: Any) -> list[Any]:
    """Returns the members of a sequence of normalizers; a single one is its only member."""
    if normalizer is None:
        return []
    is_sequence = isinstance(normalizer, normalizers.Sequence)
    return [*normalizer] if is_sequence else [normalizer]


def _add_lower_case(tokenizer: Tokenizer) -> None:
    """Lowers the case first, unless a step does so already; see sentence-transformers' module Transformer."""
    steps = _members(tokenizer.normalizer)
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _settings(folder: ModelFolder, prefix: str) -> dict[str, Any]:
    """Returns tokenizer_config.json; folders without `added_tokens_decoder` have settings in a file of old versions."""
    settings = dict(layout.optional_object(folder, f"{prefix}tokenizer_config.json"))
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    if "added_tokens_decoder" not in settings:
        for key, value in layout.optional_object(folder, f"{prefix}special_tokens_map.json").items():
            if isinstance(value, dict) and key != "extra_special_tokens":
                settings[key] = value | {"special": True}
            elif key == "extra_special_tokens" and isinstance(value, list):
                known = list(settings.get(key) or [])
                settings[key] = known + [token for token in value if token not in known]
            else:
                settings[key] = value
        if "additional_special_tokens" in settings:
            settings.setdefault("extra_special_tokens", settings.pop("additional_special_tokens"))
    if isinstance(settings.get("extra_special_tokens"), dict):
        settings |= settings.pop("extra_special_tokens")
    return settings


def _rebuilt(
    name: str, found: Tokenizer, settings: Mapping[str, Any], declared: Sequence[AddedToken], path: Path
) -> Tokenizer:
    """Returns the tokenizer that a class builds of the vocabulary in tokenizer.json, whose model it changes.

    Raises:
        UnsupportedModelError: The class does not fit to the vocabulary.
    """
    model: Any = found.model
    if not isinstance(model, MODELS[name]):
        kind = type(model).__name__
        raise UnsupportedModelError(f"{path}: tokenizer_class {name} does not fit to tokenizer.json, which has {kind}")
    tokens = {f"{key}_token": settings.get(f"{key}_token", token) for key, token in SPECIAL_TOKENS[name].items()}
    tokens |= {key: settings[key] for key in settings if key.endswith("_token") and key not in tokens}
    words = {key: _token(value).content for key, value in tokens.items() if isinstance(value, str | dict)}
    if missing := [key for key in tokens if key not in words]:
        raise UnsupportedModelError(f"{path}/tokenizer_config.json: unsupported {missing[0]} {tokens[missing[0]]!r}")
    pair = ("bos_token", "eos_token")
    if issubclass(MODELS[name], models.WordPiece):
        made = _wordpiece(model, settings, words["unk_token"])
        pair = ("cls_token", "sep_token")
    elif issubclass(MODELS[name], models.BPE):
        made = _byte_level(model, settings)
        pair = ("cls_token", "sep_token")
    else:
        made = _unigram(name, found, settings, words["unk_token"], path)
    if name == "CamembertTokenizer":
        if isinstance(tokens["mask_token"], str):
            tokens["mask_token"] = {"content": tokens["mask_token"], "lstrip": True, "special": True}
        settings = {"extra_special_tokens": list(CAMEMBERT_TOKENS), **settings}
    _add_tokens(made, settings, declared, tokens)
    first, last = (words[key] for key in pair)
    made.post_processor = processors.TemplateProcessing(
        single=[first, "$A", last],
        special_tokens=[(word, made.token_to_id(word)) for word in dict.fromkeys((first, last))],
    )
    return made


def _wordpiece(model: Any, settings: Mapping[str, Any], unknown: str) -> Tokenizer:
    model.unk_token = unknown
    model.continuing_subword_prefix, model.max_input_chars_per_word = "##", 100
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def _byte_level(model: Any, settings: Mapping[str, Any]) -> Tokenizer:
    model.dropout = model.unk_token = None
    model.continuing_subword_prefix = model.end_of_word_suffix = ""
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings.get("add_prefix_space", False))
    return made


def _unigram(name: str, found: Tokenizer, settings: Mapping[str, Any], unknown: str, path: Path) -> Tokenizer:
    number = XLM_ROBERTA_UNKNOWN if name == "XLMRobertaTokenizer" else found.model.token_to_id(unknown) or 0
    facts = _model_facts(found.model)
    if (facts["unk_id"], facts["byte_fallback"]) != (number, False):
        raise UnsupportedModelError(
            f"{path}/tokenizer.json: unsupported unk_id {facts['unk_id']}, byte_fallback {facts['byte_fallback']}; "
            f"tokenizer_class {name} has {number}, False"
        )
    made = Tokenizer(found.model)
    members = _members(found.normalizer)
    precompiled = next((member for member in members if isinstance(member, normalizers.Precompiled)), None)
    if precompiled is not None:
        made.normalizer = precompiled
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    return made


def _add_tokens(
    tokenizer: Tokenizer, settings: Mapping[str, Any], declared: Sequence[AddedToken], tokens: Mapping[str, Any]
) -> None:
    """Adds the tokens that are recognised in texts before all others, in the order in which transformers adds them."""
    by_content = {token.content: token for token in declared}
    present = tokenizer.get_added_tokens_decoder().values()
    adding = [token for token in declared if repr(token) not in map(repr, present)]
    known = {token.content for token in [*present, *adding]}
    extra = settings.get("extra_special_tokens")
    special = [value for value in tokens.values() if isinstance(value, str | dict)]
    for value in [*special, *(extra if isinstance(extra, list) else [])]:
        token = _token(value)
        if token.content not in known:
            adding.append(by_content.get(token.content, token))
            known.add(token.content)
    tokenizer.add_tokens(adding)


def _declared_tokens(
    folder: ModelFolder, prefix: str, settings: Mapping[str, Any], tokenizer: Tokenizer
) -> list[AddedToken]:
    """Returns the added tokens of the files, in the order of their ids."""
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        declared = {int(number): _token(token) for number, token in decoder.items()}
    else:
        special = {_token(settings[key]).content for key in STANDARD_TOKENS if settings.get(key)}
        special |= {_token(token).content for token in settings.get("extra_special_tokens") or ()}
        declared = {
            number: AddedToken(content, normalized=content not in special, special=content in special)
            for content, number in layout.optional_object(folder, f"{prefix}added_tokens.json").items()
        }
        declared |= tokenizer.get_added_tokens_decoder()
    return [token for _, token in sorted(declared.items(), key=lambda item: item[0])]


def _token(value: Any) -> AddedToken:
    """Returns an added token for its content, or for its fields as transformers saves them."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    fields = {key: value[key] for key in value if key not in ("__type", "id")}
    return AddedToken(**fields)
