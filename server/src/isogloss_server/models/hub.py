"""Models of the Hugging Face hub: found in its cache on this disk, or downloaded into it.

Cache, endpoint, token and offline mode are those of the hub's own library, with its own variables (HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Import this module only where a model of the hub is wanted: the library takes
its time.
"""

import errno
import logging
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from isogloss_server.errors import ModelFilesError
from isogloss_server.models.catalog import HubModel

# The layout of sentence-transformers, and nothing else: no pickled weights, no code, no other runtime's graphs. A
# module's folder begins with its number; `*` also matches slashes, so that a pattern must not begin with it.
FILES = [
    "isogloss.json",
    "modules.json",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
]
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of whatever transport the library takes

ELSEWHERE = "run `isogloss-server models pull {source}` where there is a connection, or give a folder with its files"
# What the library raises -> what is told; the first that fits.
SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (
        GatedRepoError,
        "{model} is gated: accept its terms at {hub}/{id}, and set HF_TOKEN to a token of that account",
    ),
    (RevisionNotFoundError, "{id} has no revision {revision}: look for one at {hub}/{id}/commits/main"),
    (
        RepositoryNotFoundError,
        "there is no folder {id}, and no such model on {hub} or it is private: check the name, or set HF_TOKEN",
    ),
    (HFValidationError, "{id} is no folder, and no name that a model on {hub} can have"),
    (OfflineModeIsEnabled, "{model} is not on this disk, and HF_HUB_OFFLINE is set: " + ELSEWHERE),
)
REFUSED = "{hub} refuses {model} (HTTP {status}): set HF_TOKEN to a token that may read it"
BUSY = "{hub} answers HTTP {status} for {model}: try again later"
DISK_FULL = "the disk of {cache} is full: make room, or set HF_HOME to a folder on another disk"
UNWRITABLE = "cannot keep {model} in {cache}: {why}"
BROKEN_OFF = "the download of {model} broke off: start it again; files that arrived whole are not fetched again"
UNREACHABLE = "{model} is not on this disk, and {hub} cannot be reached: " + ELSEWHERE

constants.HF_HUB_DISABLE_TELEMETRY = True
for name in ("huggingface_hub", "httpx2"):  # every request would be a line; what goes wrong is told once, by us
    logging.getLogger(name).setLevel(logging.ERROR)


def is_model_file(name: str) -> bool:
    """Returns whether a file, by its path in the model, is one that a model is loaded from."""
    return any(fnmatchcase(name, pattern) for pattern in FILES)


def cached(hub_model: HubModel) -> Path | None:
    """Returns the folder of a model that is known to be whole on this disk; asks nobody."""
    try:
        get_cached_repo_tree(hub_model.hub_id, revision=hub_model.revision)
    except CachedRepoTreeNotFoundError:  # other programs fetch file by file, and nothing says what is missing
        return None
    except HFValidationError:
        return None
    return _snapshot(hub_model)


def _snapshot(hub_model: HubModel) -> Path | None:
    """Returns the folder of a model on this disk of which no file is known to be missing."""
    try:
        folder = Path(
            snapshot_download(
                hub_model.hub_id, revision=hub_model.revision, allow_patterns=FILES, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "modules.json").is_file() and any(folder.rglob("*.safetensors")) else None


def download(hub_model: HubModel) -> Path:
    """Returns the folder of a model after fetching what of it is not on this disk, with progress on a terminal.

    Files that arrived whole are kept if it breaks off, and are not fetched again.

    Raises:
        ModelFilesError: the hub cannot be reached, does not have the model or does not give it, the disk is full, or
            the model is not one that can be served.
    """
    try:
        missing_bytes = _missing_bytes(hub_model)
    except (OSError, ValueError, TRANSPORT_ERROR) as error:
        left = _snapshot(hub_model) if _is_in_vain(error) else None
        if left is not None:  # by another program, and nobody to ask whether it is whole
            return left
        raise ModelFilesError(_explain(hub_model, error, began=False)) from error
    _check_room(hub_model, missing_bytes)
    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        return Path(snapshot_download(hub_model.hub_id, revision=hub_model.revision, allow_patterns=FILES))
    except (OSError, RuntimeError, TRANSPORT_ERROR) as error:  # RuntimeError: of hf_xet, where it has no better one
        raise ModelFilesError(_explain(hub_model, error, began=True)) from error


def _is_in_vain(error: Exception) -> bool:
    """Returns whether nobody answered."""
    return isinstance(error, OfflineModeIsEnabled | TRANSPORT_ERROR) and not isinstance(error, HfHubHTTPError)


def _missing_bytes(hub_model: HubModel) -> int:
    """Returns the bytes that are to be fetched; asks the hub once, and waits for no second chance.

    Raises:
        ModelFilesError: the model has no weights that can be read safely, or is none of sentence-transformers.
    """
    model = HfApi().model_info(
        hub_model.hub_id, revision=hub_model.revision, files_metadata=True, timeout=constants.DEFAULT_REQUEST_TIMEOUT
    )
    sizes = {file.rfilename: file.size or 0 for file in model.siblings or ()}
    needed = set(filter(is_model_file, sizes))
    if "modules.json" not in needed:
        raise ModelFilesError(f"{hub_model} has no modules.json: it is no model of sentence-transformers")
    if not any(name.endswith(".safetensors") for name in needed):
        raise ModelFilesError(
            f"{hub_model} has no weights as safetensors, and pickled ones are never read: "
            "look on the hub for a revision with model.safetensors, and give it after an @"
        )
    here = {name for name in needed if try_to_load_from_cache(hub_model.hub_id, name, revision=model.sha)}
    return sum(sizes[name] for name in needed - here)


def _check_room(hub_model: HubModel, missing_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(place).free
    if missing_bytes > free_bytes:
        raise ModelFilesError(
            f"{hub_model} needs {_mb(missing_bytes)} on the disk of {cache}, which has {_mb(free_bytes)} free: "
            "make room, or set HF_HOME to a folder on another disk"
        )


def _explain(hub_model: HubModel, error: Exception, *, began: bool) -> str:
    """Returns the one line that says what went wrong and what to do."""
    wrapped = isinstance(error, LocalEntryNotFoundError)  # the library's words around what it met
    cause = (error.__cause__ or error) if wrapped else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    sentence = next((sentence for kind, sentence in SENTENCES if isinstance(cause, kind)), None)
    if sentence is None and status is not None:
        sentence = REFUSED if status in {401, 403} else BUSY
    if sentence is None and isinstance(cause, OSError) and cause.errno is not None:
        sentence = DISK_FULL if cause.errno in {errno.ENOSPC, errno.EDQUOT} else UNWRITABLE
    return (sentence or (BROKEN_OFF if began else UNREACHABLE)).format(
        model=hub_model,
        id=hub_model.hub_id,
        revision=hub_model.revision,
        source=hub_model.source,
        hub=constants.ENDPOINT,
        cache=constants.HF_HUB_CACHE,
        status=status,
        why=getattr(cause, "strerror", None),
    )


def _mb(size_bytes: int) -> str:
    return f"{-(-size_bytes // 10**6):,} MB"
