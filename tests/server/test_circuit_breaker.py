"""The circuit breaker: when it opens, when it probes, when it closes, and what it reports."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from isogloss_server.circuit_breaker import CircuitBreaker

from tests.support.manual_clock import ManualClock


class Dependency:
    """A dependency whose probes fail with `failure`, or succeed if that is empty; with the breaker in front of it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.failure = ""
        self.broken_probe = False
        self.probes_s: list[float] = []  # times of the probes
        self.changes: list[str] = []
        self.breaker = CircuitBreaker(
            self.clock, self._probe, self.changes.append, failures_to_open=3, first_pause_s=2.0, max_pause_s=10.0
        )

    async def _probe(self) -> str:
        self.probes_s.append(self.clock.now_s)
        if self.broken_probe:
            raise KeyError
        return self.failure

    async def advance(self, seconds: float) -> None:
        """Advances the clock, and runs what wakes."""
        await settle()
        self.clock.advance(seconds)
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def dependency() -> AsyncIterator[Dependency]:
    made = Dependency()
    yield made
    made.breaker.stop()


async def test_consecutive_failures_open_it(dependency: Dependency) -> None:
    """It opens at the threshold of consecutive failures, and reports the reason once."""
    breaker = dependency.breaker
    for _ in range(2):
        breaker.failed("no connection")
    assert (breaker.is_open, dependency.changes) == (False, [])
    breaker.failed("timeout")
    breaker.failed("timeout")
    assert (breaker.is_open, breaker.detail, dependency.changes) == (True, "timeout", ["timeout"])


async def test_a_success_restarts_the_count(dependency: Dependency) -> None:
    """Failures with a success between them do not add up."""
    for _ in range(5):
        dependency.breaker.failed("no connection")
        dependency.breaker.failed("no connection")
        dependency.breaker.succeeded()
    assert (dependency.breaker.is_open, dependency.changes) == (False, [])


async def test_probes_back_off_up_to_the_limit(dependency: Dependency) -> None:
    """The pause before a probe doubles after each failed one, up to the limit; the next probe's time is known."""
    dependency.failure = "no connection"
    opened_s = dependency.clock.now_s
    dependency.breaker.open("no connection")
    for pause_s in (2.0, 4.0, 8.0, 10.0, 10.0):
        assert dependency.breaker.next_probe_in_s == pause_s
        await dependency.advance(pause_s / 2)
        assert dependency.breaker.next_probe_in_s == pause_s / 2
        await dependency.advance(pause_s / 2)
    assert [probe_s - opened_s for probe_s in dependency.probes_s] == [2, 6, 14, 24, 34]


async def test_the_first_probe_that_succeeds_closes_it(dependency: Dependency) -> None:
    """A successful probe closes it, reports that, and restarts the count of failures."""
    for _ in range(3):
        dependency.breaker.failed("no connection")
    await dependency.advance(2.0)
    assert (dependency.breaker.is_open, dependency.changes) == (False, ["no connection", ""])
    dependency.breaker.failed("no connection")
    dependency.breaker.failed("no connection")
    assert not dependency.breaker.is_open
    await dependency.advance(100.0)
    assert len(dependency.probes_s) == 1


async def test_a_new_reason_is_reported(dependency: Dependency) -> None:
    """While it is open, a probe that fails for another reason is a change; the same reason again is not."""
    dependency.breaker.open("timeout")
    dependency.failure = "no connection"
    await dependency.advance(2.0)
    await dependency.advance(4.0)
    assert dependency.changes == ["timeout", "no connection"]


async def test_a_start_probes_at_once(dependency: Dependency) -> None:
    """From the start it is open without a reason, until an immediate probe has succeeded."""
    dependency.breaker.start()
    assert (dependency.breaker.is_open, dependency.changes) == (True, [])
    await dependency.advance(0.0)
    assert (dependency.breaker.is_open, dependency.changes, len(dependency.probes_s)) == (False, [], 1)


async def test_a_start_whose_probe_fails_reports_the_reason(dependency: Dependency) -> None:
    """If the immediate probe fails, it stays open with the reason, and the next probe is after the first pause."""
    dependency.failure = "no connection"
    dependency.breaker.start()
    await dependency.advance(0.0)
    assert (dependency.breaker.is_open, dependency.changes) == (True, ["no connection"])
    dependency.failure = ""
    await dependency.advance(2.0)
    assert (dependency.breaker.is_open, dependency.changes) == (False, ["no connection", ""])


async def test_a_bug_in_the_probe_does_not_end_the_probing(dependency: Dependency) -> None:
    """An exception of the probe is a failed probe, and a later one can still close the breaker."""
    dependency.broken_probe = True
    dependency.breaker.open("no connection")
    await dependency.advance(2.0)
    assert dependency.changes[1:] == ["internal error in a probe; see the server log"]
    dependency.broken_probe = False
    await dependency.advance(4.0)
    assert not dependency.breaker.is_open


async def test_no_probe_runs_after_stop(dependency: Dependency) -> None:
    """After `stop` there are no further probes."""
    dependency.breaker.open("no connection")
    await settle()
    dependency.breaker.stop()
    await dependency.advance(100.0)
    assert dependency.probes_s == []
