"""The queue of log lines: its limit, its gaps, its order, and output of code that does not use logging."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from isogloss_server import logs

LIMIT = 8


class Pipe:
    """A queue of lines whose writer blocks at once, because the pipe behind it is full until `open` is called."""

    def __init__(self) -> None:
        self.dropped = 0
        self.lines = logs.LineQueue()
        self.lines.on_drop = self.count
        self.lines.setFormatter(logs.JsonFormatter())
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.filling = 0
        while True:
            try:
                self.filling += os.write(self.writer, b"." * 4096)
            except BlockingIOError:
                break
        os.set_blocking(self.writer, True)
        self.thread = logs.LineWriter(self.lines, self.writer)
        self.logger = logging.getLogger("tests.logs")
        self.logger.propagate = False
        self.logger.addHandler(self.lines)

    def count(self) -> None:
        self.dropped += 1

    def open(self) -> list[str]:
        """Starts the writer, reads everything, and returns the messages."""
        self.thread.start()
        read = bytearray()
        while len(read) < self.filling:
            read += os.read(self.reader, 65536)
        threading.Thread(target=self._close).start()
        with os.fdopen(self.reader, "rb") as rest:
            read += rest.read()
        return [json.loads(line)["message"] for line in read[self.filling :].decode().splitlines()]

    def _close(self) -> None:
        written = threading.Event()
        for _ in range(2):  # the second mark is behind a report that the first batch caused
            written.clear()
            self.lines.queue.put(written)
            assert written.wait(60)
        os.close(self.writer)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """A full pipe, with a limit of LIMIT lines."""
    monkeypatch.setattr(logs, "MAX_WAITING_LINES", LIMIT)
    pipe = Pipe()
    yield pipe
    pipe.logger.removeHandler(pipe.lines)


def test_lines_beyond_the_limit_are_dropped_and_reported_in_their_place(pipe: Pipe) -> None:
    """If stderr is not read, the oldest lines are kept, the others counted, and one line has their number."""
    for number in range(LIMIT + 5):
        pipe.logger.warning("line %d", number)
    assert pipe.dropped == 5
    assert pipe.open() == [*(f"line {number}" for number in range(LIMIT)), "log lines dropped"]


def test_the_report_of_a_gap_has_the_number_of_dropped_lines(pipe: Pipe) -> None:
    """The line about a gap is a warning with the number of lines."""
    for number in range(LIMIT + 5):
        pipe.logger.warning("line %d", number)
    while not pipe.lines.queue.empty():
        pipe.lines.queue.get_nowait()
    pipe.logger.warning("next")
    report = json.loads(pipe.lines.format(pipe.lines.queue.get_nowait()))  # type: ignore[arg-type]
    assert (report["message"], report["lines"], report["level"]) == ("log lines dropped", 5, "warning")


def test_a_gap_ends_when_half_of_the_queue_is_free(pipe: Pipe) -> None:
    """A reader that takes single lines does not cause a report for each of them."""
    for number in range(LIMIT + 1):
        pipe.logger.warning("line %d", number)
    pipe.lines.queue.get_nowait()
    pipe.logger.warning("dropped, though there is room")
    assert (pipe.lines.queue.qsize(), pipe.dropped) == (LIMIT - 1, 2)


def test_a_closed_pipe_does_not_end_the_writer(pipe: Pipe) -> None:
    """Lines to a reader that has gone are counted as dropped, and the thread goes on."""
    os.close(pipe.reader)
    pipe.thread.start()
    for _ in range(3):
        written = threading.Event()
        pipe.logger.warning("lost")
        pipe.lines.queue.put(written)
        assert written.wait(60)
    assert pipe.dropped >= 3
    os.close(pipe.writer)


def test_a_waiting_line_holds_no_arguments_and_no_frames(pipe: Pipe) -> None:
    """A waiting line does not keep the objects of the call that logged it."""
    pipe.logger.error("failed: %s", object(), exc_info=ValueError("a text of a caller"))
    record = pipe.lines.queue.get_nowait()
    assert isinstance(record, logging.LogRecord)
    assert (record.args, record.exc_info) == (None, (ValueError, None, None))
    assert json.loads(pipe.lines.format(record))["error"] == "ValueError"
    assert "a text of a caller" not in pipe.lines.format(record)


def test_a_line_stays_one_line(pipe: Pipe) -> None:
    """Line ends and escapes in a library's message or field are escaped, so that none can look like another line."""
    pipe.lines.setFormatter(logs.TextFormatter())
    pipe.logger.warning("one\ntwo\x1b[31m", extra={"fields": {"name": "a\nb"}})
    line = pipe.lines.format(pipe.lines.queue.get_nowait())  # type: ignore[arg-type]
    assert line.endswith(r'one\ntwo\x1b[31m name="a\nb"')


def test_output_of_libraries_is_in_order_with_the_log_and_quotes_no_exception() -> None:
    """Prints, warnings, and exceptions of threads pass through the queue; the message of an exception does not."""
    program = """
import sys, threading, warnings
from isogloss_server import logs
logs.configure("info", "json")
def fail(): raise ValueError("a text of a caller")
logs.info("first")
print("printed", file=sys.stderr)
warnings.warn("deprecated\\nindeed")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
class Unraisable:
    def __del__(self): raise ValueError("a text of a caller")
Unraisable()
logs.flush(60)
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True)
    lines = done.stderr.splitlines()
    messages = [json.loads(line)["message"] if line.startswith("{") else line for line in lines]
    assert [messages[0], messages[1], *messages[3:]] == ["first", "printed", "internal error", "internal error"]
    assert "UserWarning: deprecated\nindeed" in messages[2]
    assert "a text of a caller" not in done.stderr


def test_native_code_that_holds_the_interpreter_cannot_block_on_stderr() -> None:
    """Native code writes to a stderr that is not read, and the process goes on; what has no room is lost."""
    program = """
import ctypes
from isogloss_server import logs
logs.queue_stderr()
line = b"x" * 100_000
for _ in range(20):
    ctypes.PyDLL(None).write(2, line, len(line))
"""
    reader, writer = os.pipe()
    assert subprocess.run([sys.executable, "-c", program], stderr=writer, check=False, timeout=60).returncode == 0
    os.close(writer)
    os.close(reader)


def test_quoted_characters_are_read_back_from_json() -> None:
    """What is quoted in a line of JSON is the same text for its reader."""
    text = "a\n\x85\x9b\u2028\U000e0001 Grüße 𝕏"
    record = logging.LogRecord("name", logging.INFO, "", 0, text, None, None)
    line = logs.JsonFormatter().format(record)
    assert json.loads(line)["message"] == text
    assert "Grüße 𝕏" in line


def test_a_mapping_and_a_list_are_words_in_a_line_of_text() -> None:
    """The parts of a mapping are fields of their own, and a list is separated by commas; nothing is empty."""
    record = logging.LogRecord("name", logging.INFO, "", 0, "starting", None, None)
    record.fields = {"models": ["a", "b"], "settings": {"port": 0, "host": ""}, "none": None, "empty": ""}
    assert logs.TextFormatter().format(record).endswith("starting models=a,b settings.port=0")
