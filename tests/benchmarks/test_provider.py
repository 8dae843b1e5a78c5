import pytest

from benchmarks import provider
from benchmarks.provider import OURS, SDK


def a_round(ours_ms: float, sdk_ms: float) -> dict[str, provider.Sample]:
    """Returns a round in which all but the times is as it must be."""
    figures = {"cpu_ms": 50.0, "provider_calls": 11.0, "provider_texts": 1000.0, "most_in_flight": 8.0}
    return {OURS: {"wall_ms": ours_ms, **figures}, SDK: {"wall_ms": sdk_ms, **figures}}


def test_the_overhead_is_taken_within_a_round() -> None:
    """Our time is held against the SDK's of the same round, and against what the provider itself takes."""
    found = provider.assemble([a_round(440, 400), a_round(880, 800), a_round(420, 400)])
    assert found["ideal"] == {"provider_calls": 11, "wall_ms": pytest.approx(400)}  # 8 at once, then 3, 200 ms each
    assert found["overhead"]["to_sdk"] == pytest.approx({"median": 0.1, "min": 0.05, "max": 0.1})
    assert found["overhead"]["of_providers_time"] == pytest.approx({"median": 0.1, "min": 0.05, "max": 0.2})
    assert found["systems"][OURS]["provider_calls"]["max"] == 11
