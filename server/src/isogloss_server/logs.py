"""Structured logs on stderr, as text or JSON: one line for each call and event. They never hold texts of callers."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Protocol

# Libraries whose lower levels are not logged: OpenAI's SDK logs requests, and with them texts.
QUIET = ("cohere", "httpcore", "httpcore2", "httpx", "httpx2", "openai", "redis")
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


def configure(level: str, log_format: str) -> None:
    """Configures logging to stderr.

    Args:
        level: The lowest level that is logged: debug, info, warning or error.
        log_format: "text" or "json".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def call(fields: CallFields, code: str, milliseconds: float) -> None:
    """Logs a finished call.

    Args:
        fields: Properties of the call.
        code: Name of the gRPC status.
        milliseconds: Duration of the call.
    """
    _access.info(
        "call",
        extra={
            "fields": {
                "method": fields.method,
                "code": code,
                "ms": round(milliseconds, 3),
                "texts": fields.texts,
                "tokens": fields.tokens,
                "model": fields.model,
                "request_id": fields.request_id,
            }
        },
    )


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
        return json.dumps(_fields(record), ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Formats a record as a line for people: time, level, message, then name=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line for a record."""
        fields = _fields(record)
        head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('message')}"
        fields.pop("logger")
        return " ".join([head, *(f"{name}={_word(value)}" for name, value in fields.items() if value != "")])


def _word(value: object) -> str:
    """Returns a value, quoted if it has characters that separate fields."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(' ="\\') else text


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[1] is not None:
        fields["error"] = type(record.exc_info[1]).__qualname__
    return fields
