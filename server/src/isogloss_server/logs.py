"""Structured logs on stderr, as text or JSON: one line for each call and event. They never hold texts of callers.

A thread writes the lines, so that a stderr that is not read blocks only that thread. Lines beyond a limit are dropped.
"""

import contextlib
import io
import json
import logging
import os
import select
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Protocol, TypeAlias

# Libraries whose lower levels are not logged: OpenAI's SDK logs requests, and with them texts.
QUIET = ("cohere", "httpcore", "httpcore2", "httpx", "httpx2", "openai", "opentelemetry", "redis")
# Lines that wait for stderr. A line beyond this number is dropped, and so are the next ones, until half of the waiting
# lines are written. So the gaps in a log are few, and one line reports each.
MAX_WAITING_LINES = 8192
MAX_MESSAGE_CHARACTERS = 2048  # of a library's message, or bytes of its output: bounds the memory of the lines
MAX_ITEMS_OF_A_WRITE = 256
REST_S = 0.005
FLUSH_S = 1.0  # time for the waiting lines at the end of the process
STDERR = 2
ENCODING = ("utf-8", "backslashreplace")
# A record, a piece of output as it is, or a mark that is set once everything before it is written.
Item: TypeAlias = logging.LogRecord | bytes | threading.Event
_ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)
_access = logging.getLogger("isogloss_server.access")
_errors = logging.getLogger("isogloss_server.errors")
_events = logging.getLogger("isogloss_server.events")


class CallFields(Protocol):
    """The fields of a call's line."""

    method: str
    request_id: str
    texts: int
    tokens: int
    model: str
    priority: str
    caller: str
    reason: str
    trace_id: str
    queue_s: float | None
    tokenization_s: float | None
    inference_s: float | None
    peer: str
    user_agent: str


class LineQueue(QueueHandler):
    """Hands over lines to the thread that writes them; drops lines if too many wait."""

    queue: "SimpleQueue[Item]"

    def __init__(self) -> None:
        """Creates an empty queue; `on_drop` can be set to be called for each dropped line."""
        super().__init__(SimpleQueue())
        self.on_drop: Callable[[], None] = lambda: None
        self._gap = 0  # dropped lines that no line of the log has reported
        self._gap_lock = threading.Lock()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Returns the record without references to arguments and frames, which may hold texts of callers."""
        record.msg, record.args = record.getMessage()[:MAX_MESSAGE_CHARACTERS], None
        if record.exc_info and record.exc_info[0]:
            record.exc_info, record.exc_text = (record.exc_info[0], None, None), None  # type: ignore[assignment]
        return record

    def enqueue(self, record: Item) -> None:
        """Enqueues a record or a piece of output, or drops it."""
        if self.queue.qsize() >= (MAX_WAITING_LINES // 2 if self._gap else MAX_WAITING_LINES):
            self.drop()
            return
        self.report_gap()
        self.queue.put(record)

    def drop(self) -> None:
        """Counts a dropped line."""
        with self._gap_lock:
            self._gap += 1
        self.on_drop()

    def report_gap(self) -> None:
        """Enqueues a line about the dropped lines, in their place, if there are any and half of the queue is free."""
        if not self._gap or self.queue.qsize() >= MAX_WAITING_LINES // 2:
            return
        with self._gap_lock:
            lines, self._gap = self._gap, 0
        if lines:
            fields = {"fields": {"lines": lines}}
            message = "log lines dropped"
            self.queue.put(_events.makeRecord(_events.name, logging.WARNING, "", 0, message, (), None, extra=fields))


class LineWriter(QueueListener):
    """The thread that writes the lines of a queue to a descriptor, which may block."""

    def __init__(self, lines: LineQueue, descriptor: int) -> None:
        super().__init__(lines.queue)
        self._lines = lines
        self._descriptor = descriptor
        self._rest = threading.Event()

    def handle(self, record: Item) -> None:
        """Writes an item, with those that wait behind it, and then rests: a wake-up for each line would cost more."""
        items = [record]
        while len(items) < MAX_ITEMS_OF_A_WRITE and self._lines.queue.qsize():
            items.append(self._lines.queue.get_nowait())
        texts = [self._encode(item) for item in items if not isinstance(item, threading.Event)]
        try:
            _write(self._descriptor, b"".join(texts))
        except OSError:  # such as a closed pipe
            for _ in texts:
                self._lines.drop()
        else:
            self._lines.report_gap()
        for mark in items:
            if isinstance(mark, threading.Event):
                mark.set()
        self._rest.wait(REST_S)

    def _encode(self, item: logging.LogRecord | bytes) -> bytes:
        if isinstance(item, bytes):
            return item
        try:
            return f"{self._lines.format(item)}\n".encode(*ENCODING)
        except Exception as error:  # noqa: BLE001 - a field that cannot be formatted must not end the thread
            return f"a line of {item.name} cannot be formatted: {type(error).__qualname__}\n".encode(*ENCODING)


class QueuedOutput(io.RawIOBase):
    """Output that Python code prints to stderr, such as tracebacks and progress bars, in order with the log's lines."""

    def __init__(self, lines: LineQueue) -> None:
        self._lines = lines

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Enqueues the first bytes of a piece of output; returns their number."""
        piece = bytes(data[:MAX_MESSAGE_CHARACTERS])
        self._lines.enqueue(piece)
        return len(piece)

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns True if stderr is a terminal."""
        return os.isatty(STDERR)

    def fileno(self) -> int:
        """Returns the descriptor of stderr."""
        return STDERR


_lines: LineQueue | None = None


def queue_stderr() -> LineQueue:
    """Makes all output to stderr pass through a queue, so that a stderr that is not read blocks only one thread.

    Returns:
        The queue, one for the process.
    """
    global _lines  # noqa: PLW0603 - as stderr, one for the process
    if _lines is None:
        _lines = LineQueue()
        LineWriter(_lines, _separate_stderr()).start()
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(QueuedOutput(_lines)), *ENCODING, line_buffering=True)
    return _lines


def configure(level: str, log_format: str) -> None:
    """Configures logging to stderr, also of warnings and of exceptions that no code handles.

    Args:
        level: The lowest level that is logged: debug, info, warning or error.
        log_format: "text" or "json".
    """
    from isogloss_server.metrics import DROPPED_LOG_LINES  # noqa: PLC0415 - its library is imported only to serve

    # What no line has is not looked up, such as the file of the logging call (Logging HOWTO, Optimization).
    logging._srcfile = None  # noqa: SLF001 - documented
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    lines = queue_stderr()
    lines.on_drop = DROPPED_LOG_LINES.inc
    lines.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    logging.captureWarnings(True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    threading.excepthook = lambda unhandled: internal_error(unhandled.exc_value or unhandled.exc_type())
    sys.unraisablehook = lambda unhandled: internal_error(unhandled.exc_value or unhandled.exc_type())


def flush(timeout_s: float = FLUSH_S) -> None:
    """Waits until the lines so far are written, but not longer than `timeout_s` seconds."""
    if _lines is not None:
        written = threading.Event()
        _lines.queue.put(written)
        written.wait(timeout_s)


def _separate_stderr() -> int:
    """Makes stderr drop what it cannot take at once; returns another descriptor for it, which may block.

    Libraries in C and Rust write to stderr directly, and some while they hold the interpreter. A pipe or a terminal is
    opened once more, because other processes share its flags; a socket is this process's alone. If it cannot be opened,
    stderr stays as it is.
    """
    blocking = os.dup(STDERR)
    mode = os.fstat(STDERR).st_mode
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(mode):
            os.set_blocking(STDERR, False)
        elif stat.S_ISFIFO(mode) or os.isatty(STDERR):
            again = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(again, STDERR)
            os.close(again)
    return blocking


def _write(descriptor: int, data: bytes) -> None:
    """Writes all of `data`, and waits as long as it takes."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            writable = select.poll()
            writable.register(descriptor, select.POLLOUT)
            writable.poll()


def call(fields: CallFields, code: str, total_s: float) -> None:
    """Logs a finished call.

    Args:
        fields: Properties of the call.
        code: Name of the gRPC status.
        total_s: Duration of the call.
    """
    _access.info(
        "call",
        extra={
            "fields": {
                "method": fields.method,
                "code": code,
                "reason": fields.reason,
                "ms": _milliseconds(total_s),
                "queue_ms": _milliseconds(fields.queue_s),
                "tokenization_ms": _milliseconds(fields.tokenization_s),
                "inference_ms": _milliseconds(fields.inference_s),
                "texts": fields.texts,
                "tokens": fields.tokens,
                "model": fields.model,
                "priority": fields.priority,
                "caller": fields.caller,
                "peer": fields.peer,
                "user_agent": fields.user_agent,
                "request_id": fields.request_id,
                "trace_id": fields.trace_id,
            }
        },
    )


def _milliseconds(duration_s: float | None) -> float | None:
    return None if duration_s is None else round(duration_s * 1e3, 3)


def info(message: str, **fields: object) -> None:
    """Logs an event of the server."""
    _events.info(message, extra={"fields": fields})


def debug(message: str, **fields: object) -> None:
    """Logs a detail for debugging."""
    _events.debug(message, extra={"fields": fields})


def warning(message: str, **fields: object) -> None:
    """Logs a problem that an operator should look at."""
    _events.warning(message, extra={"fields": fields})


def internal_error(error: BaseException, **fields: object) -> None:
    """Logs an unexpected exception: only types and code lines, since messages may quote texts of callers."""
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        lines = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(link.__traceback__)]
        chain.append(" < ".join([type(link).__qualname__, *reversed(lines)]))
        link = link.__cause__ or link.__context__
    _errors.error("internal error", extra={"fields": {**fields, "error": " | from ".join(chain)}})


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, and the fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line for a record."""
        return _json(_fields(record))


class TextFormatter(logging.Formatter):
    """Formats a record as a line for people: time, level, message, then name=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line for a record."""
        fields = _fields(record)
        message = str(fields.pop("message"))
        if not message.isprintable():
            message = "".join(map(_visible, message))
        head = f"{fields.pop('time')} {fields.pop('level'):7} {message}"
        fields.pop("logger")
        return " ".join([head, *(f"{name}={_word(value)}" for name, value in _flat(fields) if value not in ("", None))])


def _flat(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yields fields with a value that is text or a number; the parts of a mapping as NAME.PART."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", str(inner)) for part, inner in value.items())
        else:
            yield name, ",".join(map(str, value)) if isinstance(value, list) else value


def _word(value: object) -> str:
    """Returns a value, quoted if it has characters that separate fields."""
    text = str(value)
    return _json(text) if set(text) & set(' ="\\') or not text.isprintable() else text


def _json(value: object) -> str:
    """Returns a value as JSON in printable characters: others control terminals, or end lines for some readers."""
    text = _ENCODER.encode(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _visible(character: str) -> str:
    """Returns a character that keeps the line one line: others are escaped."""
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__qualname__
    return fields
