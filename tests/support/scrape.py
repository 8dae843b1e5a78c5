"""The metrics of a server, read as Prometheus reads them."""

import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import Self

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SELECTOR = re.compile(r"(\w+)(?:\{(.*)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')


class Scrape:
    """The samples of one scrape.

    Attributes:
        text: The whole text, with the help and the types.
        samples: The samples.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: list[Sample] = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    @classmethod
    def of(cls, url: str) -> Self:
        """Returns a scrape of a server."""
        with urllib.request.urlopen(url, timeout=60) as response:
            return cls(response.read().decode())

    @classmethod
    def of_this_process(cls) -> Self:
        """Returns the metrics of servers that run in the process of the test."""
        from isogloss_server import metrics

        return cls(generate_latest(metrics.REGISTRY).decode())

    def value(self, selector: str) -> float:
        """Returns the sum of the samples that match a selector, such as `name{label="value"}`; 0 if there are none."""
        found = SELECTOR.fullmatch(selector)
        assert found is not None, selector
        labels = MATCHER.findall(found[2] or "")
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == found[1] and all(sample.labels.get(name) == value for name, value in labels)
        )

    def rise(self, selector: str, before: "Scrape") -> float:
        """Returns by how much a value has risen since another scrape."""
        return self.value(selector) - before.value(selector)

    def labels_of(self, name: str) -> list[Mapping[str, str]]:
        """Returns the labels of the samples of a name."""
        return [sample.labels for sample in self.samples if sample.name == name]


def scrape_until(url: str, condition: Callable[[Scrape], bool]) -> Scrape:
    """Returns the first scrape that meets a condition."""
    for _ in range(100_000):
        scrape = Scrape.of(url)
        if condition(scrape):
            return scrape
    raise AssertionError("the metrics never met the condition")
