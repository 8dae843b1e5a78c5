"""What each verb of the command line does: asks the server, then prints for people or, with --json, for programs."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from isogloss.cli.arguments import UsageError, model_arguments
from isogloss.cli.embed import embed
from isogloss.cli.output import Output
from isogloss.cli.render import aligned, heat_map, neighbors_table, pair_table
from isogloss.cli.texts import chunks, shifted, whole
from isogloss.client import Client
from isogloss.enums import ServingStatus
from isogloss.errors import IsoglossError, SpaceMismatchError
from isogloss.results import Neighbor

HEALTHY = frozenset({ServingStatus.SERVING, ServingStatus.DEGRADED})


def similarity(client: Client, arguments: argparse.Namespace, output: Output) -> int:
    """Prints the scores of texts with each other, or with --candidate."""
    texts, others = whole(arguments.texts), arguments.candidate
    if arguments.pairwise:
        return _pairwise(client, arguments, output, texts)
    found = client.similarity(texts, others, metric=arguments.metric, **model_arguments(arguments))
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
    found = client.pairwise(texts, others, metric=arguments.metric, **model_arguments(arguments))
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
    """Prints the candidates nearest to a query. Only some candidates are held at a time."""
    best: list[Neighbor] = []
    spaces: dict[str, str] = {}  # space -> model
    for start, candidates in chunks(arguments.candidates):
        try:
            found = client.nearest(
                arguments.query,
                candidates,
                k=arguments.k,
                min_score=arguments.min_score,
                metric=arguments.metric,
                **model_arguments(arguments),
            )
        except IsoglossError as error:
            raise shifted(error, start) from None
        spaces[found.space_id] = found.model
        if len(spaces) > 1:
            message = "the server changed the model's space between two parts of the candidates"
            raise SpaceMismatchError(message, reason="SPACE_MISMATCH")
        # Sorting is stable: of equal scores, the lower row stays first.
        both = [*best, *(neighbor._replace(row=neighbor.row + start) for neighbor in found)]
        best = sorted(both, key=lambda neighbor: -neighbor.score)[: arguments.k]
    [(space_id, model)] = spaces.items()
    data = {
        "model": model,
        "space_id": space_id,
        "metric": arguments.metric,
        "query": arguments.query,
        "neighbors": [neighbor._asdict() for neighbor in best],
    }
    output.show(data, lambda: neighbors_table(best, colour=output.colour))
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
