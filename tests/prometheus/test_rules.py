"""Prometheus itself reads the metrics, the rules and the queries of the dashboard."""

import os
from pathlib import Path

import grpc
import pytest
import yaml
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.prometheus_server import PrometheusServer, binary, promtool
from tests.support.queries import RULES, dashboard_queries, rules
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.prometheus

CONFIG = RULES.with_name("prometheus.yml")
UNIT_TESTS = Path(__file__).with_name("rules_test.yml")


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if binary("promtool") is None or binary("prometheus") is None:
        missing = "prometheus is neither on PATH nor under .prometheus; `make test-prometheus` installs it"
        if os.environ.get("CI") == "true" or os.environ.get("NEED_PROMETHEUS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    """The example of a configuration, and with it the rules, have no error."""
    checked = promtool("check", "config", "--lint=all", "--lint-fatal", CONFIG)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_pass_their_unit_tests() -> None:
    """Each alert fires when its unit test says, and not before."""
    tested = promtool("test", "rules", UNIT_TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    """No alert is without a case in which it fires, and one in which it does not."""
    cases = yaml.safe_load(UNIT_TESTS.read_text(encoding="utf-8"))["tests"]
    alerts = [alert for case in cases for alert in case.get("alert_rule_test", ())]
    names = {alert["alert"] for alert in rules("alert")}
    assert {alert["alertname"] for alert in alerts if alert["exp_alerts"]} == names
    quiet = {alert["alertname"] for alert in alerts if not alert["exp_alerts"]}
    assert quiet == names


def test_promtool_parses_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    """Each query of the dashboard is valid."""
    recorded = [
        {"record": f"dashboard:query:{number}", "expr": query} for number, query in enumerate(dashboard_queries())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}), encoding="utf-8")
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_real_prometheus_scrapes_a_server_and_evaluates_the_rules(tmp_path: Path) -> None:
    """The scrape passes promtool's linter; every rule and query is evaluated, and the calls of the server are seen."""
    with ServerProcess("--metrics-port", "0") as process:
        url = str(process.wait_for("serving metrics")["url"])
        with grpc.insecure_channel(process.address) as channel:
            embedding_pb2_grpc.EmbeddingServiceStub(channel).Embed(pb.EmbedRequest(texts=["one", "two"]))
        linted = promtool("check", "metrics", text=Scrape.of(url).text)
        assert linted.returncode == 0, linted.stdout + linted.stderr
        config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "200ms")
        config["rule_files"] = [str(RULES)]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [url.removeprefix("http://").partition("/")[0]]
        file = tmp_path / "prometheus.yml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with PrometheusServer(file, tmp_path / "data") as prometheus:
            prometheus.query_until('isogloss_calls_total{job="isogloss", method="Embed", code="OK"} == 1')
            prometheus.query_until("job_method:isogloss_calls:rate5m")
            for query in dashboard_queries():
                prometheus.query(query)
            evaluated = prometheus.evaluated_rules()
    assert len(evaluated) == len(rules("record")) + len(rules("alert"))
    assert [rule for rule in evaluated if rule["health"] != "ok"] == []
    assert [rule for rule in evaluated if rule.get("state") == "firing"] == []
