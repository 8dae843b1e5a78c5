"""A library in Rust panics on a text: an exception that is not an Exception, with a line on stderr."""

import json
import re
from pathlib import Path

import isogloss
import pytest

from tests.support.panicking_tokenizer import PANIC_LETTER, panic_on_letter
from tests.support.server_process import ServerProcess

SECRET = "a private sentence"


@pytest.mark.parametrize("times", [1, 2000], ids=["event loop", "thread"])
def test_a_panic_ends_in_a_status_and_the_server_serves_on(static_folder: Path, times: int) -> None:
    """The caller gets INTERNAL with the id of the log line; no stack of the library, and no text, is on stderr."""
    panic_on_letter(static_folder)
    texts = [f"{SECRET} {PANIC_LETTER} " * times]
    with (
        ServerProcess("--model", str(static_folder), env={"RUST_BACKTRACE": "full"}) as server,
        isogloss.Client(server.address) as client,
    ):
        for _ in range(3):
            with pytest.raises(isogloss.InternalError) as raised:
                client.embed(texts)
        assert client.embed(["one two"]).vectors.shape == (1, 3)
    found = re.search("fault_id=([0-9a-f]{32})", str(raised.value))
    assert found is not None
    logged = [json.loads(line) for line in server.lines if line.startswith("{")]
    (fault,) = (fields for fields in logged if fields.get("fault_id") == found[1])
    assert "LibraryPanicError" in fault["error"]
    assert "PanicException" in fault["error"]
    assert [fields["code"] for fields in logged if fields["message"] == "call"] == ["INTERNAL"] * 3 + ["OK"]
    printed = "".join(server.lines)
    assert "stack backtrace" not in printed
    assert SECRET not in printed
