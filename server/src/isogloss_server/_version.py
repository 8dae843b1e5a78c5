"""The version of this distribution, which is that of the client it was built with."""

from importlib.metadata import version

__version__ = version("isogloss-server")
