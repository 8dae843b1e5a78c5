"""HealthReporter: the state of a model from the reports of its parts."""

import asyncio
import threading

from isogloss_server.engine.monitoring import HealthReporter, State


def ignore_change() -> None:
    pass


def test_the_state_is_starting_until_the_model_serves() -> None:
    """Reports before `start_serving` do not change the state, and apply from then on."""
    changes: list[State] = []
    reporter = HealthReporter("test", lambda: changes.append(reporter.state))
    reporter.report("cache", State.DEGRADED, "no cache")
    assert (reporter.state, reporter.detail, changes) == (State.STARTING, "loading", [])
    reporter.start_serving()
    assert (reporter.state, reporter.detail, changes) == (State.DEGRADED, "no cache", [State.DEGRADED])


def test_the_state_is_serving_if_no_part_reports() -> None:
    """A model without reports is SERVING, with an empty detail."""
    reporter = HealthReporter("test", ignore_change)
    reporter.start_serving()
    assert (reporter.state, reporter.detail) == (State.SERVING, "")


def test_the_worst_part_determines_the_state() -> None:
    """The state is the worst of the parts' states, and the detail has all parts in that state, and no other."""
    reporter = HealthReporter("test", ignore_change)
    reporter.start_serving()
    reporter.report("cache", State.DEGRADED, "no cache")
    reporter.report("batches", State.DEGRADED, "3 batches failed")
    assert (reporter.state, reporter.detail) == (State.DEGRADED, "no cache; 3 batches failed")
    reporter.report("executor", State.NOT_SERVING, "stalled")
    assert (reporter.state, reporter.detail) == (State.NOT_SERVING, "stalled")


def test_a_recovered_part_no_longer_counts() -> None:
    """The state after a recovery is the worst of the other parts, and SERVING after the last recovery."""
    reporter = HealthReporter("test", ignore_change)
    reporter.start_serving()
    reporter.report("executor", State.NOT_SERVING, "stalled")
    reporter.report("cache", State.DEGRADED, "no cache")
    reporter.report("executor", State.SERVING, "")
    assert (reporter.state, reporter.detail) == (State.DEGRADED, "no cache")
    reporter.report("cache", State.SERVING, "")
    assert (reporter.state, reporter.detail) == (State.SERVING, "")


async def test_reports_of_threads_are_applied_on_the_event_loop_in_order() -> None:
    """Reports of another thread are applied in their order, by the thread of the event loop."""
    changes: list[tuple[int, str]] = []
    reporter = HealthReporter("test", lambda: changes.append((threading.get_ident(), reporter.detail)))
    reporter.start_serving()
    changes.clear()

    def report() -> None:
        for number in range(20):
            reporter.report("batches", State.DEGRADED, str(number))
        reporter.report("batches", State.SERVING, "")

    thread = threading.Thread(target=report)
    thread.start()
    thread.join(60)
    assert changes == []
    assert reporter.state is State.SERVING
    await asyncio.sleep(0)
    expected = [*map(str, range(20)), ""]
    assert changes == [(threading.get_ident(), detail) for detail in expected]
