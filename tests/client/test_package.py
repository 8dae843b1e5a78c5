"""The package `isogloss` imports its public names when they are first used."""

import subprocess
import sys

import isogloss
import pytest


@pytest.mark.parametrize("name", isogloss.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    """Each name of `__all__` is an attribute of the package, and listed by dir()."""
    assert getattr(isogloss, name) is not None
    assert name in dir(isogloss)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that does not exist is refused as by any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        _ = isogloss.Clinet
    assert set(isogloss._HOMES) | {"__version__"} == set(isogloss.__all__)


def test_the_contracts_words_load_neither_grpc_nor_protobuf() -> None:
    """A server that imports the enums of the wire has not loaded gRPC or protobuf."""
    loaded = "'grpc' in sys.modules or 'google.protobuf' in sys.modules"
    program = f"import sys, isogloss.wire.enums, isogloss.wire.sizes; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
