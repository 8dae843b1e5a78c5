"""The name that a model is served under, and where it comes from."""

from pathlib import Path

from isogloss_server.models.names import is_hosted
from isogloss_server.models.weights import is_folder


def model_name_and_source(model: str) -> tuple[str, str]:
    """Returns the name that a model is served under, and where it comes from: NAME=SOURCE, or SOURCE alone.

    SOURCE alone goes by its last part, without the revision: `owner/model@v2` is served as `model`, and so is
    `openai:owner/model@http://host/v1`.
    """
    if is_hosted(model):
        return _hosted_name(model), model
    name, equals, source = model.partition("=")
    if equals:
        return name, source
    last = Path(model).name
    return (last if is_folder(model) else last.partition("@")[0]), model


def _hosted_name(source: str) -> str:
    return source.partition(":")[2].partition("@http")[0].rpartition("/")[2]
