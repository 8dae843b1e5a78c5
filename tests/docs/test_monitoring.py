"""The dashboard, the rules and the alerts name metrics, labels and pages that exist."""

import itertools
import json
import re

import pytest
from isogloss_server import metrics

from tests.support.queries import (
    DASHBOARD,
    ROOT,
    dashboard_queries,
    matched_labels,
    metric_names,
    panels,
    rules,
    samples_of,
)

OF_THE_SCRAPE = {"job", "instance"}  # labels that Prometheus adds
FACTS = {"backend", "space_id", "revision", "dimensions", "version", "python_version"}  # of the info metrics
SAMPLES = samples_of(list(metrics.REGISTRY.collect()))
RECORDED = {rule["record"] for rule in rules("record")}
RULE_QUERIES = [rule["expr"] for kind in ("record", "alert") for rule in rules(kind)]
QUERIES = [*dashboard_queries(), *RULE_QUERIES]


def labels_of(name: str) -> set[str]:
    """Returns the labels of a metric of the table."""
    own = {label for row in metrics.TABLE for label in row.labels if name.startswith(row.name)}
    return own | OF_THE_SCRAPE | FACTS | {"le"}


@pytest.mark.parametrize("query", QUERIES)
def test_queries_name_metrics_that_exist(query: str) -> None:
    """Each query names a metric, and every metric is one that the server has, a recorded series, or `up`."""
    names = metric_names(query)
    assert names
    assert names <= SAMPLES | RECORDED | {"up"}


@pytest.mark.parametrize("query", QUERIES)
def test_queries_match_labels_that_exist(query: str) -> None:
    """Matchers and groupings name labels of their metrics."""
    for name, labels in matched_labels(query):
        assert name.startswith("job") or labels <= labels_of(name), name
    grouped = {label for found in re.findall(r"\bby \(([^)]*)\)", query) for label in found.replace(" ", "").split(",")}
    assert grouped <= set().union(*(labels_of(name) for name in metric_names(query)))


def test_the_dashboard_shows_every_metric() -> None:
    """Each metric of the table is in a panel."""
    shown = set().union(*map(metric_names, dashboard_queries()))
    assert [row.name for row in metrics.TABLE if not any(name.startswith(row.name) for name in shown)] == []


def test_panels_are_complete_and_do_not_overlap() -> None:
    """Panels have an id of their own, a title, a description and a unit, and none covers another."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    covered: list[tuple[int, int]] = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        rows, columns = (range(place[at], place[at] + place[size]) for at, size in (("y", "h"), ("x", "w")))
        covered += itertools.product(rows, columns)
    assert len(set(covered)) == len(covered)
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])


def test_queries_of_the_dashboard_use_its_variables() -> None:
    """Every query is restricted to the chosen job and instances, and every variable is defined."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert {"job", "instance"} <= used <= defined


@pytest.mark.parametrize("alert", rules("alert"), ids=lambda alert: str(alert["alert"]))
def test_alerts_name_an_entry_of_the_runbook(alert: dict[str, object]) -> None:
    """Each alert has a severity, a summary, and a link to a heading of the runbook."""
    assert alert["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    annotations = alert["annotations"]
    assert isinstance(annotations, dict)
    assert annotations["summary"]
    file, _, heading = annotations["runbook"].partition("#")
    headings = re.findall(r"^## (.*)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert heading in {each.lower().replace(" ", "-") for each in headings}
