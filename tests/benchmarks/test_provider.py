import pytest

from benchmarks import provider
from benchmarks.provider import OURS, SDK


def round_of(ours_ms: float, sdk_ms: float) -> dict[str, provider.Sample]:
    """Returns a round with the given latencies."""
    figures = {"cpu_ms": 50.0, "provider_calls": 11.0, "provider_texts": 1000.0, "most_in_flight": 8.0}
    return {OURS: {"wall_ms": ours_ms, **figures}, SDK: {"wall_ms": sdk_ms, **figures}}


def test_overhead_is_computed_within_a_round() -> None:
    """The overhead is relative to the SDK in the same round, and to the time of the provider."""
    report = provider.assemble([round_of(440, 400), round_of(880, 800), round_of(420, 400)])
    assert report["ideal"] == {"provider_calls": 11, "wall_ms": pytest.approx(400)}  # 8 at once, then 3, 200 ms each
    assert report["overhead"]["to_sdk"] == pytest.approx({"median": 0.1, "min": 0.05, "max": 0.1})
    assert report["overhead"]["of_providers_time"] == pytest.approx({"median": 0.1, "min": 0.05, "max": 0.2})
    assert report["systems"][OURS]["provider_calls"]["max"] == 11
