"""What each verb of the command line does: asks the server, then prints for people or, with --json, for programs."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from isogloss.cli.arguments import UsageError
from isogloss.cli.render import aligned, heat_map, neighbors_table, pair_table, vector_table
from isogloss.client import Client
from isogloss.enums import ServingStatus

HEALTHY = frozenset({ServingStatus.SERVING, ServingStatus.DEGRADED})


@dataclass(frozen=True, slots=True)
class Output:
    """Where to print, and whether in colours and as JSON."""

    stream: TextIO
    colour: bool
    as_json: bool

    @classmethod
    def of(cls, stream: TextIO, arguments: argparse.Namespace, environment: Mapping[str, str]) -> "Output":
        """Returns the output that the arguments ask for; by itself, colours go to a terminal that can show them."""
        dumb = environment.get("TERM") == "dumb" or bool(environment.get("NO_COLOR"))
        colour = arguments.color == "always" or (arguments.color == "auto" and stream.isatty() and not dumb)
        return cls(stream, colour, arguments.json)

    def show(self, data: Mapping[str, Any], readable: Callable[[], str]) -> None:
        """Prints `data` as one JSON object, or what `readable` makes for people."""
        if self.as_json:
            json.dump(data, self.stream, ensure_ascii=False, default=_plain)
            self.stream.write("\n")
        else:
            self.stream.write(readable())


def embed(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints one vector for each text."""
    texts = _texts(arguments.texts)
    found = client.embed(
        texts,
        input_type=arguments.input_type,
        element_type=arguments.element_type,
        **_model(arguments),
    )
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "dimensions": found.dimensions,
        "token_counts": found.token_counts,
        "truncated_rows": found.truncated_rows,
        "texts": texts,
        "vectors": found.vectors,
    }
    output.show(data, lambda: vector_table(found.vectors, texts))
    return 0


def similarity(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the scores of texts with each other, or with --candidate."""
    texts, others = _texts(arguments.texts), arguments.candidate
    if arguments.pairwise:
        return _pairwise(client, arguments, output, texts)
    found = client.similarity(texts, others, metric=arguments.metric, **_model(arguments))
    columns = texts if others is None else others
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "metric": arguments.metric,
        "queries": texts,
        "candidates": columns,
        "scores": found.values,
    }
    output.show(data, lambda: heat_map(found.values, texts, columns, colour=output.colour))
    return 0


def _pairwise(client: Client, arguments: argparse.Namespace, output: Output, texts: Sequence[str]) -> int:
    others = arguments.candidate or []
    if len(others) != len(texts):
        raise UsageError(f"--pairwise needs as many --candidate as texts: {len(others)} for {len(texts)}")
    found = client.pairwise(texts, others, metric=arguments.metric, **_model(arguments))
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "metric": arguments.metric,
        "pairs": [
            {"query": query, "candidate": other, "score": score}
            for query, other, score in zip(texts, others, found.values.tolist(), strict=True)
        ],
    }
    output.show(data, lambda: pair_table(found.values, texts, others, colour=output.colour))
    return 0


def nearest(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the candidates nearest to a query."""
    candidates = _texts(arguments.candidates)
    found = client.nearest(
        arguments.query,
        candidates,
        k=arguments.k,
        min_score=arguments.min_score,
        metric=arguments.metric,
        **_model(arguments),
    )
    data = {
        "model": found.model,
        "space_id": found.space_id,
        "metric": arguments.metric,
        "query": arguments.query,
        "neighbors": [neighbor._asdict() for neighbor in found],
    }
    output.show(data, lambda: neighbors_table(found, colour=output.colour))
    return 0


def health(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints how the server fares, and returns 1 where it cannot serve."""
    report = client.health(arguments.model)

    def readable() -> str:
        """Returns a line for the server, and one for each model."""
        rows = [("MODEL", "STATUS", "QUEUED", "EMBEDDED", "DETAIL")]
        rows += [(m.model, m.status, str(m.queued_texts), str(m.embedded_texts), m.detail) for m in report.models]
        return f"{report.status}: version {report.version}, up {report.uptime_s:.0f} s\n\n{aligned(rows)}"

    output.show(asdict(report), readable)
    return 0 if report.status in HEALTHY else 1


def models(client: Client, _arguments: argparse.Namespace, output: Output) -> int:
    """Prints what the server offers."""
    found = client.models()

    def readable() -> str:
        """Returns a line for each model."""
        rows = [("MODEL", "BACKEND", "DIMENSIONS", "MAX TOKENS", "LANGUAGES", "LICENSE", "SPACE")]
        rows += [
            (
                m.name,
                m.backend,
                " ".join(map(str, m.dimensions)),
                str(m.max_tokens),
                str(len(m.languages)),
                m.license,
                m.space_id,
            )
            for m in found
        ]
        return aligned(rows)

    output.show({"models": [asdict(model) for model in found]}, readable)
    return 0


COMMANDS: Mapping[str, Callable[[Client, argparse.Namespace, Output], int]] = MappingProxyType(
    {"embed": embed, "similarity": similarity, "nearest": nearest, "health": health, "models": models}
)


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "dimensions": arguments.dimensions,
        "truncation": arguments.truncation,
        "timeout_s": arguments.timeout_s,
    }


def _texts(given: Sequence[str]) -> list[str]:
    """Returns the texts that were given, or where there are none, or a single -, the lines of standard input."""
    if given and list(given) != ["-"]:
        return list(given)
    found = [text for line in sys.stdin if (text := line.rstrip("\r\n")) and not text.isspace()]
    if not found:
        raise UsageError("no texts, neither as arguments nor on standard input")
    return found


def _plain(value: Any) -> Any:
    """Returns what json cannot write by itself as what it can."""
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
