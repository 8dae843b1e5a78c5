"""Models of the Hugging Face hub: found in its cache on this disk, or downloaded into it.

Cache, endpoint, token and offline mode are those of the huggingface_hub library, with its variables (HF_HOME,
HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Import this module on first use only: the library takes long to import.
"""

import errno
import logging
import shutil
import sys
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
from isogloss_server.models.model_folder import FILES, is_model_file

TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # the base class of whichever HTTP library is used

USE_LOCAL_FILES = "run `isogloss-server models pull {source}` on a machine with access, or name a folder with its files"
# Exceptions of the library, and messages for them; the first match counts.
MESSAGES: tuple[tuple[type[Exception], str], ...] = (
    (
        GatedRepoError,
        "{model} is gated: accept its terms at {hub}/{id}, and set HF_TOKEN to a token of that account",
    ),
    (RevisionNotFoundError, "{id} has no revision {revision}: {hub}/{id}/commits/main lists revisions"),
    (
        RepositoryNotFoundError,
        "{id} is neither a folder nor a public model on {hub}: check the name, or set HF_TOKEN for a private model",
    ),
    (HFValidationError, "{id} is neither a folder nor a valid hub id"),
    (OfflineModeIsEnabled, "{model} is not on this disk, and HF_HUB_OFFLINE is set: " + USE_LOCAL_FILES),
)
DENIED = "{hub} denied access to {model} (HTTP {status}): set HF_TOKEN to a token that may read it"
BUSY = "{hub} returned HTTP {status} for {model}: retry later"
DISK_FULL = "the disk of {cache} is full: free space, or set HF_HOME to a folder on another disk"
UNWRITABLE = "cannot store {model} in {cache}: {cause}"
HOMELESS = "the user of the process has no home folder for the cache of the hub's models: set HF_HOME to a folder"
INTERRUPTED = "the download of {model} was interrupted: start it again; completely downloaded files are kept"
UNREACHABLE = "{model} is not on this disk, and {hub} is unreachable: " + USE_LOCAL_FILES

constants.HF_HUB_DISABLE_TELEMETRY = True
for name in ("huggingface_hub", "httpx2"):  # one line for each request; errors are reported by this module
    logging.getLogger(name).setLevel(logging.ERROR)


def cached(hub_model: HubModel) -> Path | None:
    """Returns the folder of a model that is known to be complete on this disk, or None; does not access the network."""
    if not _has_cache():
        return None
    try:
        get_cached_repo_tree(hub_model.hub_id, revision=hub_model.revision)
    except CachedRepoTreeNotFoundError:  # other programs download single files, and which are missing is unknown
        return None
    except HFValidationError:
        return None
    return _snapshot(hub_model)


def _has_cache() -> bool:
    """Returns False if the cache's folder depends on the home folder of a user that has none, as in some containers."""
    try:
        Path(constants.HF_HUB_CACHE).expanduser()
    except RuntimeError:
        return False
    return True


def _snapshot(hub_model: HubModel) -> Path | None:
    """Returns the folder of a model on this disk if no file is known to be missing, or None."""
    try:
        folder = Path(
            snapshot_download(
                hub_model.hub_id, revision=hub_model.revision, allow_patterns=list(FILES), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "modules.json").is_file() and any(folder.rglob("*.safetensors")) else None


def download(hub_model: HubModel) -> Path:
    """Downloads the missing files of a model, with progress bars on a terminal.

    Completely downloaded files are kept if the download is interrupted, and are not downloaded again.

    Returns:
        The folder of the model.

    Raises:
        ModelFilesError: The hub is unreachable, does not have the model or denies access, the disk is full, or the
            model is not supported.
    """
    if not _has_cache():
        raise ModelFilesError(HOMELESS)
    try:
        missing_bytes = _missing_bytes(hub_model)
    except (OSError, ValueError, TRANSPORT_ERROR) as error:
        local = _snapshot(hub_model) if _is_unreachable(error) else None
        if local is not None:  # from another program; the hub cannot be asked if it is complete
            return local
        raise ModelFilesError(_message(hub_model, error, is_started=False)) from error
    _check_free_space(hub_model, missing_bytes)
    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    try:
        return Path(snapshot_download(hub_model.hub_id, revision=hub_model.revision, allow_patterns=list(FILES)))
    except (OSError, RuntimeError, TRANSPORT_ERROR) as error:  # RuntimeError: raised by hf_xet
        raise ModelFilesError(_message(hub_model, error, is_started=True)) from error


def _is_unreachable(error: Exception) -> bool:
    """Returns True if there was no response at all."""
    return isinstance(error, OfflineModeIsEnabled | TRANSPORT_ERROR) and not isinstance(error, HfHubHTTPError)


def _missing_bytes(hub_model: HubModel) -> int:
    """Returns the number of bytes to download; makes one request, without retries.

    Raises:
        ModelFilesError: The model has no safetensors weights, or not the layout of sentence-transformers.
    """
    model = HfApi().model_info(
        hub_model.hub_id, revision=hub_model.revision, files_metadata=True, timeout=constants.DEFAULT_REQUEST_TIMEOUT
    )
    sizes = {file.rfilename: file.size or 0 for file in model.siblings or ()}
    needed = set(filter(is_model_file, sizes))
    if "modules.json" not in needed:
        raise ModelFilesError(
            f"unsupported model {hub_model}: it has no modules.json, so it is not in the sentence-transformers layout"
        )
    if not any(name.endswith(".safetensors") for name in needed):
        raise ModelFilesError(
            f"unsupported model {hub_model}: it has no safetensors weights, and pickled weights are never loaded; "
            "if a revision on the hub has model.safetensors, name it as OWNER/NAME@REVISION"
        )
    present = {name for name in needed if try_to_load_from_cache(hub_model.hub_id, name, revision=model.sha)}
    return sum(sizes[name] for name in needed - present)


def _check_free_space(hub_model: HubModel, missing_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if missing_bytes > free_bytes:
        raise ModelFilesError(
            f"{hub_model} needs {_mb(missing_bytes)} on the disk of {cache}, which has {_mb(free_bytes)} free: "
            "free space, or set HF_HOME to a folder on another disk"
        )


def _message(hub_model: HubModel, error: Exception, *, is_started: bool) -> str:
    """Returns one line with the cause of an error and what to do."""
    is_wrapped = isinstance(error, LocalEntryNotFoundError)  # the library raises it from the cause
    cause = (error.__cause__ or error) if is_wrapped else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    message = next((message for kind, message in MESSAGES if isinstance(cause, kind)), None)
    if message is None and status is not None:
        message = DENIED if status in {401, 403} else BUSY
    if message is None and isinstance(cause, OSError) and cause.errno is not None:
        message = DISK_FULL if cause.errno in {errno.ENOSPC, errno.EDQUOT} else UNWRITABLE
    return (message or (INTERRUPTED if is_started else UNREACHABLE)).format(
        model=hub_model,
        id=hub_model.hub_id,
        revision=hub_model.revision,
        source=hub_model.source,
        hub=constants.ENDPOINT,
        cache=constants.HF_HUB_CACHE,
        status=status,
        cause=getattr(cause, "strerror", None),
    )


def _mb(size_bytes: int) -> str:
    return f"{-(-size_bytes // 10**6):,} MB"
