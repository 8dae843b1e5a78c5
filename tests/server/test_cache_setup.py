"""Errors in the settings of the shared cache: one line at the start, which never reveals the password."""

import sys
import traceback

import pytest
from isogloss_server import app
from isogloss_server.clock import SystemClock
from isogloss_server.errors import CacheSetupError, SettingsError
from isogloss_server.settings.declarations import Settings

MODULE = "isogloss_server.engine.redis_store"


def uninstall_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes imports of redis-py fail, whether or not it has been imported."""
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name in ["redis", *(name for name in sys.modules if name.startswith("redis."))]:
        monkeypatch.setitem(sys.modules, name, None)


def build(url: str) -> None:
    app._cache(Settings(cache_redis_url=url), SystemClock(), lambda state, detail: None)


def test_a_missing_package_has_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py, a server with a Redis URL does not start, and reports the command that installs it."""
    uninstall_redis(monkeypatch)
    with pytest.raises(CacheSetupError, match=r"pip install 'isogloss-server\[redis\]'"):
        build("redis://localhost")


@pytest.mark.parametrize(
    "url",
    [
        "http://:swordfish@host",
        "swordfish",
        "redis://:swordfish@host:port",
        "redis://:swordfish@host:99999",
        "redis://:swordfish@host/cache",
        "redis://:swordfish@host/1/2",
        "redis://:swordfish@host?swordfish=1",
        "rediss://:swordfish@host?ssl_cert_reqs=swordfish",
        "redis://:swordfish@",
        "redis://[::1",
        "",
    ],
)
def test_an_invalid_url_is_not_quoted(url: str) -> None:
    """An invalid URL is rejected; neither the error nor its cause quotes it."""
    pytest.importorskip("redis")
    with pytest.raises(SettingsError, match="redis://") as raised:
        build(url)
    assert "swordfish" not in "".join(traceback.format_exception_only(raised.value))
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_redis_is_not_imported_without_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a Redis URL does not need the package."""
    uninstall_redis(monkeypatch)
    app._cache(Settings(), SystemClock(), lambda state, detail: None)
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    "url",
    ["redis://host", "rediss://:swordfish@host:6380/3", "redis://[::1]:6379/", "redis://h?health_check_interval=5"],
)
def test_a_valid_url_is_accepted_without_a_connection(url: str) -> None:
    """A URL with port, database, password and options is accepted; nothing is connected to at the start."""
    pytest.importorskip("redis")
    build(url)
