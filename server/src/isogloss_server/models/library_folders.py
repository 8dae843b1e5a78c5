"""Folders that sentence-transformers is to run: what is refused before it is asked, and the name of their space."""

import hashlib
from collections.abc import Iterator

from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models import layout
from isogloss_server.models.tokens import Tokens
from isogloss_server.models.weights import ModelFolder, fingerprint

# The files that the vectors of a folder come from, in the folder of each module; what else lies there is not read.
FILES = ("config.json", "sentence_*_config.json", "model*.safetensors", "tokenizer.json", "tokenizer_config.json")


def check(folder: ModelFolder) -> None:
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
        place = layout.module_place(folder, number)
        if (folder.path / place / "adapter_config.json").is_file():
            raise UnsupportedModelError(f"{where}: an adapter of another model; merge it into that, and save the whole")
        if any((folder.path / place).glob("pytorch_model*.bin")) and not _has_safetensors(folder, place):
            raise ModelFilesError(f"{where}: the weights in {place or '.'} are pickled; save them as safetensors")
        if name == "Pooling" and layout.prompts(folder):
            pooling = layout.required_object(folder, f"{place}config.json")
            if not pooling.get("include_prompt", True):
                raise UnsupportedModelError(f"{where}: a pooling that leaves the prompt out is not served")


def _has_safetensors(folder: ModelFolder, place: str) -> bool:
    return any((folder.path / place).glob("model*.safetensors"))


def space_id(folder: ModelFolder, tokens: Tokens, tokenizer: str) -> str:
    """Returns what the packed engine calls the space where it could compute it, else a digest of all that matters.

    `tokenizer` is the tokenizer itself, for folders that keep it in another form than tokenizer.json.
    """
    try:
        plan = layout.transformer(folder)
    except UnsupportedModelError:
        pass  # the packed engine has no such modules
    else:
        packed = [f"{plan.place}model.safetensors", f"{plan.place}tokenizer.json"]
        packed += [f"{dense.place}model.safetensors" for dense in plan.dense]
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
        prompts={role.value: prompt for role, prompt in layout.prompts(folder).items()},
    )


def _files(folder: ModelFolder) -> Iterator[str]:
    for number in range(len(folder.modules)):
        place = layout.module_place(folder, number)
        for pattern in FILES:
            found = sorted((folder.path / place).rglob(pattern))
            yield from (str(file.relative_to(folder.path)) for file in found)
