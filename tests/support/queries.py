"""The queries of the dashboard and of the rules, and the metrics that they name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Metric

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "isogloss-rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "isogloss.json"
VARIABLES = {"$__rate_interval": "5m", "$job": "isogloss", "$instance": ".*", "$model": ".*"}  # as Grafana sets them
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}


def rules(kind: str) -> list[dict[str, Any]]:
    """Returns the rules of a kind, "record" or "alert"."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def panels() -> list[dict[str, Any]]:
    """Returns the panels of the dashboard, without the titles of rows."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    """Returns the queries of the dashboard as Grafana sends them."""
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    for name, value in VARIABLES.items():
        queries = [query.replace(name, value) for query in queries]
    return queries


def metric_names(query: str) -> set[str]:
    """Returns the names of the metrics and of recorded series in a query."""
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|without|on|ignoring) *\([^)]*\)|\"[^\"]*\"", " ", query)
    return {
        name for name in re.findall(r"[a-z_][a-z0-9_:]*", without_labels) if re.search("isogloss|process_|^up$", name)
    }


def matched_labels(query: str) -> Iterator[tuple[str, set[str]]]:
    """Yields each metric with matchers, and the labels that they match."""
    for name, matchers in re.findall(r"([a-z_][a-z0-9_:]*)\{([^}]*)\}", query):
        yield name, set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", matchers))


def samples_of(families: list[Metric]) -> set[str]:
    """Returns the names of the samples that metrics have, with suffixes."""
    return {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES[family.type]}
