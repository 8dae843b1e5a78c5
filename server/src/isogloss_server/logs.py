"""Structured logs on stderr, JSON or readable: one line a call. Nothing of a caller's text ever reaches them."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Protocol

# Libraries that tell more than they may at lower levels: OpenAI's SDK writes requests, and with them texts.
QUIET = ("cohere", "httpcore", "httpcore2", "httpx", "httpx2", "openai", "redis")
_access = logging.getLogger("isogloss_server.access")
_faults = logging.getLogger("isogloss_server.faults")
_events = logging.getLogger("isogloss_server.events")


class CallFields(Protocol):
    """What a call's line tells of it."""

    method: str
    request_id: str
    texts: int
    tokens: int
    model: str


def configure(level: str, log_format: str) -> None:
    """Sends the logs to stderr from `level` on, as "json" or "text" lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def call(fields: CallFields, code: str, milliseconds: float) -> None:
    """Writes the line of one finished call."""
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
    """Writes a line about the server itself."""
    _events.info(message, extra={"fields": fields})


def debug(message: str, **fields: object) -> None:
    """Writes a line that only somebody looking closely wants."""
    _events.debug(message, extra={"fields": fields})


def warning(message: str, **fields: object) -> None:
    """Writes a line about what an operator should look at."""
    _events.warning(message, extra={"fields": fields})


def internal_error(error: BaseException, **fields: object) -> None:
    """Writes where an unforeseen error came from: types and places alone, for its message may quote a text."""
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None:
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(link.__traceback__)]
        chain.append(" < ".join([type(link).__qualname__, *reversed(places)]))
        link = link.__cause__ or link.__context__
    _faults.error("unforeseen error", extra={"fields": {**fields, "error": " | from ".join(chain)}})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the line's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return json.dumps(_fields(record), ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """A readable line: time, level, message, then name=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = _fields(record)
        head = f"{fields.pop('time')} {fields.pop('level'):7} {fields.pop('message')}"
        fields.pop("logger")
        return " ".join([head, *(f"{name}={_word(value)}" for name, value in fields.items() if value != "")])


def _word(value: object) -> str:
    """Returns a value as one word, quoted where it would read as several or as another field."""
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
