"""What is wrong with the shared cache's setting is one line at the start, and never tells the password."""

import sys
import traceback

import pytest
from isogloss_server import app
from isogloss_server.clock import SystemClock
from isogloss_server.errors import CacheSetupError
from isogloss_server.settings.declarations import Settings

MODULE = "isogloss_server.engine.redis_store"


def forget_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets redis-py be as if it were not installed, whoever has imported it."""
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    for name in ["redis", *(name for name in sys.modules if name.startswith("redis."))]:
        monkeypatch.setitem(sys.modules, name, None)


def build(url: str) -> None:
    app._cache(Settings(cache_redis_url=url), SystemClock(), lambda state, detail: None)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py, a server that is told of a Redis does not start, and says what to install."""
    forget_redis(monkeypatch)
    with pytest.raises(CacheSetupError, match=r"pip install 'isogloss-server\[redis\]'"):
        build("redis://localhost")


@pytest.mark.parametrize("url", ["http://:swordfish@host", "swordfish", "redis://:swordfish@host:port", ""])
def test_what_is_no_url_is_not_quoted(url: str) -> None:
    """A URL that Redis does not have is refused, without a word of it in the error or what led to it."""
    pytest.importorskip("redis")
    with pytest.raises(CacheSetupError, match="redis://") as raised:
        build(url)
    assert "swordfish" not in "".join(traceback.format_exception_only(raised.value))
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_nothing_of_redis_is_imported_without_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told of no Redis needs no package for it."""
    forget_redis(monkeypatch)
    app._cache(Settings(), SystemClock(), lambda state, detail: None)
    assert MODULE not in sys.modules
