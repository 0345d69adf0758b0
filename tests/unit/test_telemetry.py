"""The service's own histograms read as the library's would."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.telemetry import Distributions

BOUNDS = (0.001, 0.5, 1, 10)


@pytest.mark.parametrize("values", [[], [0.0], [0.001, 0.0011, 0.5, 1, 1.5, 10, 11, 1e9]])
def test_distribution_is_exposed_as_the_librarys_histogram(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    distributions = Distributions("seconds", "Text.", ("route", "status"), BOUNDS)
    ours.register(distributions)
    histogram = Histogram("seconds", "Text.", ("route", "status"), buckets=BOUNDS, registry=theirs)
    for value in values:
        distributions.labels("/a", 200).observe(value)
        distributions.labels("/b", 404).observe(2 * value)
        histogram.labels("/a", 200).observe(value)
        histogram.labels("/b", 404).observe(2 * value)
    assert exposed(ours) == exposed(theirs)


def exposed(registry: CollectorRegistry) -> list[str]:
    """What Prometheus reads, without the times of creation that it does not need."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_distribution_of_the_same_labels_is_one() -> None:
    distributions = Distributions("seconds", "Text.", ("status",), BOUNDS)
    assert distributions.labels(200) is distributions.labels("200")
    assert distributions.labels(200) is not distributions.labels(304)
