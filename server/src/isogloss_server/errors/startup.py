"""Why the server cannot start."""


class StartupError(Exception):
    """The server cannot start; the message is the one line that an operator reads."""


class ModelFilesError(StartupError):
    """A model's files are missing, damaged, or of a kind that is not served."""


class UnsupportedModelError(ModelFilesError):
    """A model is of a kind that the runtime does not compute."""


class ProviderSetupError(StartupError):
    """A provider's model cannot be served: no key, a key that is refused, no such model, or a retired one."""


class CacheSetupError(StartupError):
    """The shared cache cannot be used: its package is missing, or its URL is none."""


class ListenError(StartupError):
    """The address cannot be listened on."""
