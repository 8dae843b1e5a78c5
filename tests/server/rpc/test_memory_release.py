"""The memory of a failed call is freed without the garbage collector."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import grpc
import pytest
from isogloss.v1 import embedding_pb2 as pb
from isogloss_server.errors import DomainError
from isogloss_server.rpc.interceptor import release_frames

from tests.support.in_process import CountingEmbedder, ready_registry, serving


@pytest.fixture
def _without_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_garbage_collector")
@pytest.mark.parametrize("text", ["", "!!!", "fine"])
async def test_a_failed_call_frees_its_request_and_error_at_once(text: str) -> None:
    """Without the garbage collector neither the request nor the error of a failed call exists after its response."""
    requests = [pb.EmbedRequest(texts=["good", text], model="" if text != "fine" else "unknown") for _ in range(20)]
    async with serving(ready_registry(CountingEmbedder())) as stub:
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Embed(request)
        await asyncio.sleep(0)
        alive = [item for item in gc.get_objects() if isinstance(item, DomainError)]
        assert len(alive) <= 1, "errors of failed calls exist, with the frames that hold their texts"


class Local:
    """A local variable of a frame."""


class FailingFrames:
    """Functions that raise, each with a Local in its frame; `locals` has weak references to them."""

    def __init__(self) -> None:
        self.locals: list[weakref.ref[Local]] = []

    def new_local(self) -> Local:
        """Returns a Local that only the caller holds."""
        local = Local()
        self.locals.append(weakref.ref(local))
        return local

    def fail(self) -> None:
        """Raises a plain error."""
        _local = self.new_local()
        raise ValueError

    def fail_with_cause(self) -> None:
        """Raises an error that has a cause."""
        _local = self.new_local()
        try:
            self.fail()
        except ValueError as error:
            cause = error
        raise KeyError from cause

    def fail_with_context(self) -> None:
        """Raises an error that has a context."""
        _local = self.new_local()
        try:
            self.fail()
        except ValueError:
            raise KeyError  # noqa: B904 - without a cause

    def fail_with_group(self) -> None:
        """Raises a group, in a group, of errors that have a cause and a context."""
        _local = self.new_local()
        errors: list[Exception] = []
        for fail in (self.fail, self.fail_with_cause, self.fail_with_context):
            try:
                fail()
            except (ValueError, KeyError) as error:
                errors.append(error)
        raise ExceptionGroup("outer", [ExceptionGroup("inner", errors)])

    def fail_with_cycle(self) -> None:
        """Raises an error whose cause has the error itself as its context."""
        _local = self.new_local()
        error, cause = KeyError(), ValueError()
        error.__cause__, cause.__context__ = cause, error
        raise error


@pytest.mark.usefixtures("_without_garbage_collector")
@pytest.mark.parametrize(
    ("method", "frames"),
    [("fail", 1), ("fail_with_cause", 2), ("fail_with_context", 2), ("fail_with_group", 6), ("fail_with_cycle", 1)],
)
def test_release_frames_clears_causes_contexts_and_groups(method: str, frames: int) -> None:
    """The local variables of all frames of an error, its causes, contexts and groups are freed."""
    failing = FailingFrames()
    try:
        getattr(failing, method)()
    except Exception as error:  # noqa: BLE001 - each method raises another one
        held = [local() is not None for local in failing.locals]
        release_frames(error)
        freed = [local() is None for local in failing.locals]
    assert held == freed == [True] * frames
