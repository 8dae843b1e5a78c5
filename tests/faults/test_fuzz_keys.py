"""Arbitrary credentials and requests on a server with keys: nobody without a valid key reaches a method."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_caller import Caller
from tests.fuzz.seeds import METHODS, OURS, Method
from tests.fuzz.strategies import requests
from tests.support.keys import add_key, bearer
from tests.support.process_state import Observer
from tests.support.server_process import ServerProcess

OPEN = ("Check", "List", "Watch")  # by default


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, str]]:
    """A real server with keys, and one of them."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(file)
    with ServerProcess("--keys-file", str(file)) as process:
        yield process, key


def credentials(key: str) -> st.SearchStrategy[list[str]]:
    """Returns a strategy for values of the metadata, none of which is valid."""
    printable = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80).map(str.strip)
    cut = st.integers(0, len(key) - 1).map(lambda at: f"Bearer {key[:at]}")
    changed = st.integers(0, len(key) - 1).map(lambda at: f"Bearer {key[:at]}!{key[at + 1 :]}")
    schemes = st.sampled_from([key, f"Basic {key}", f"Bearer{key}", f"Bearer {key} x", f"Bearer {key * 2}"])
    one = st.one_of(printable, printable.map(lambda text: f"Bearer isogloss_{text}"), cut, changed, schemes)
    return st.one_of(st.lists(one, max_size=3), st.just([f"Bearer {key}"] * 2))


@pytest.mark.parametrize("examples", [25, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_arbitrary_credentials_reach_no_method(
    keyed_server: tuple[ServerProcess, str], method: Method, examples: int
) -> None:
    """Whatever the credentials and the request are, the status is UNAUTHENTICATED, and the server frees all of it."""
    server, key = keyed_server
    observer, caller = Observer(server, bearer(key)), Caller(server.address, keys=True)
    caller.call(method, method.seeds[0].SerializeToString(), metadata=bearer(key))

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(credentials(key), requests(method))
    def check(values: list[str], request: bytes) -> None:
        code = caller.call(method, request, metadata=[("authorization", value) for value in values])
        is_open = not values and method.path.endswith(OPEN) and not method.path.startswith(OURS)
        assert is_open or code == "UNAUTHENTICATED"

    with observer.unaffected():
        check()
    caller.close()
    observer.close()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_arbitrary_requests_of_a_key_holder_get_an_expected_status(
    keyed_server: tuple[ServerProcess, str], method: Method
) -> None:
    """With a valid key, the status of any request is one that it could have without keys."""
    server, key = keyed_server
    caller = Caller(server.address)

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(requests(method), min_size=1, max_size=3 if method.streams else 1))
    def check(sent: list[bytes]) -> None:
        caller.call(method, *sent, metadata=bearer(key))

    check()
    caller.close()
