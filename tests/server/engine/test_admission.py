"""The room of a model's queue: what is let in, what is refused, and for how long."""

import asyncio

import pytest
from isogloss.wire.enums import Priority
from isogloss_server.engine.admission import LONGEST_RETRY_S, UNKNOWN_RETRY_S, Admission, Cost
from isogloss_server.errors import OverloadedError
from isogloss_server.models.interfaces import Urgency

BULK, INTERACTIVE = Urgency(Priority.BULK), Urgency()


def filled(admission: Admission, tokens: int, urgency: Urgency = INTERACTIVE, *, jobs: int = 1) -> None:
    for _ in range(jobs):
        admission.enter(Cost(tokens, 10), urgency, 0.0)


def measured(rate: int) -> Admission:
    """Returns an empty queue of 100,000 tokens that has done so many tokens a second under load."""
    admission = Admission(100_000, 1 << 30)
    filled(admission, 10_000, jobs=2)
    for second in range(60):
        admission.learn_rate(rate if second else 0, float(second))
    for _ in range(2):
        admission.leave(Cost(10_000, 10), Priority.INTERACTIVE, patient=False)
    return admission


def test_a_full_queue_refuses_and_room_lets_in_again() -> None:
    """Beyond its room the queue refuses with the figures; what leaves makes room."""
    admission = Admission(100, 1000)
    filled(admission, 60)
    with pytest.raises(OverloadedError, match="full") as refused:
        filled(admission, 41)
    assert (refused.value.figures["waiting_tokens"], refused.value.figures["limit"]) == ("60", "100")
    assert refused.value.retry_after_s == UNKNOWN_RETRY_S
    admission.leave(Cost(60, 10), Priority.INTERACTIVE, patient=False)
    filled(admission, 41)
    assert admission.tokens == 41


def test_an_empty_queue_takes_any_job() -> None:
    """A job larger than the whole room is let in where nothing waits, and needs no more than half the room else."""
    admission = Admission(100, 1000)
    filled(admission, 5_000)
    admission.leave(Cost(5_000, 10), Priority.INTERACTIVE, patient=False)
    filled(admission, 50)
    filled(admission, 5_000)
    assert admission.tokens == 5_050


def test_bulk_is_shed_before_interactive() -> None:
    """BULK finds no room while INTERACTIVE still does."""
    admission = Admission(100, 1000)
    filled(admission, 40, BULK)
    with pytest.raises(OverloadedError):
        filled(admission, 20, BULK)
    filled(admission, 40)
    with pytest.raises(OverloadedError):
        filled(admission, 40)


def test_memory_is_bounded_for_everybody() -> None:
    """Beyond the bytes, calls and streams alike are refused."""
    admission = Admission(100, 1000)
    admission.enter(Cost(1, 600), INTERACTIVE, 0.0)
    with pytest.raises(OverloadedError, match="memory") as refused:
        admission.enter(Cost(1, 500), INTERACTIVE, 0.0)
    assert refused.value.figures["limit"] == "1000"
    with pytest.raises(OverloadedError, match="memory"):
        asyncio.run(admission.enter_patiently(Cost(1, 500), Priority.INTERACTIVE))


def test_bulk_leaves_half_of_the_memory_to_others() -> None:
    """However much BULK wants, calls and streams, INTERACTIVE finds memory."""
    admission = Admission(10_000, 1000)
    asyncio.run(admission.enter_patiently(Cost(1, 300), Priority.BULK))
    admission.enter(Cost(1, 200), BULK, 0.0)
    with pytest.raises(OverloadedError, match="memory") as refused:
        asyncio.run(admission.enter_patiently(Cost(1, 100), Priority.BULK))
    assert refused.value.figures["limit"] == "500"
    admission.enter(Cost(1, 400), INTERACTIVE, 0.0)


def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    """A job whose deadline the work before it would outlast is refused, with the time that the work takes."""
    admission = measured(10_000)
    filled(admission, 30_000)
    urgency = Urgency(deadline_s=100.0)
    admission.enter(Cost(10, 10), urgency, 94.0)
    with pytest.raises(OverloadedError, match=r"might take 5\.1 s, and the deadline is in 3\.0 s") as refused:
        admission.enter(Cost(10, 10), urgency, 97.0)
    assert refused.value.retry_after_s == pytest.approx(1.5, rel=0.05)


def test_a_queue_that_is_nearly_empty_is_never_too_slow() -> None:
    """However soon the deadline is, a job is tried where little waits: the rate says nothing about a single job."""
    admission = measured(10_000)
    filled(admission, 4_000)
    admission.enter(Cost(90_000, 10), Urgency(deadline_s=0.001), 0.0)


def test_interactive_jobs_wait_for_their_own_lane() -> None:
    """What BULK has in the queue does not make an INTERACTIVE deadline impossible; the other way round it does."""
    admission = measured(10_000)
    filled(admission, 40_000, BULK)
    admission.enter(Cost(10, 10), Urgency(deadline_s=1.0), 0.0)
    with pytest.raises(OverloadedError):
        admission.enter(Cost(10, 10), Urgency(Priority.BULK, 1.0), 0.0)


def test_the_time_to_retry_is_that_until_the_queue_is_half_empty() -> None:
    """RetryInfo comes of the measured rate, within bounds."""
    admission = measured(10_000)
    filled(admission, 100_000)
    with pytest.raises(OverloadedError) as refused:
        filled(admission, 10_000)
    assert refused.value.retry_after_s == pytest.approx(6.0, rel=0.05)
    slow = measured(1)
    filled(slow, 100_000)
    with pytest.raises(OverloadedError) as refused:
        filled(slow, 10_000)
    assert refused.value.retry_after_s == LONGEST_RETRY_S


def test_the_rate_is_not_learnt_from_callers_that_ask_slowly() -> None:
    """With little at hand nothing is learnt: a caller of one short text a second does not make the model slow."""
    admission = Admission(100_000, 1 << 30)
    for second in range(100):
        filled(admission, 10)
        admission.learn_rate(10, float(second))
        admission.leave(Cost(10, 10), Priority.INTERACTIVE, patient=False)
    filled(admission, 50_000)
    admission.enter(Cost(10, 10), Urgency(deadline_s=1.0), 0.0)


def test_the_time_without_work_is_nobodys() -> None:
    """A large job now and then, with nothing between, does not make the model slow."""
    admission = Admission(100_000, 1 << 30)
    for minute in range(20):
        filled(admission, 5_000)
        admission.learn_rate(5_000, 60.0 * minute)
        admission.leave(Cost(5_000, 10), Priority.INTERACTIVE, patient=False)
    filled(admission, 10_000)
    admission.enter(Cost(5_000, 10), Urgency(deadline_s=1.0), 0.0)


def test_estimates_follow_the_texts() -> None:
    """The estimate begins at a usual ratio, follows what the model reads, and knows where texts are cut."""
    admission = Admission()
    before = admission.estimate(1000, 1, 0)
    for _ in range(50):
        admission.learn_ratio(100_000, 80_000)
    assert before < 400 < admission.estimate(1000, 1, 0) == pytest.approx(800, abs=2)
    assert admission.estimate(1000, 2, 128) == 256


async def test_streams_wait_for_room_in_order() -> None:
    """A stream's request waits until those before it have left; calls have room of their own meanwhile."""
    admission = Admission(400, 1000)  # of which streams have 100
    await admission.enter_patiently(Cost(80, 10), Priority.BULK)
    entered: list[str] = []

    async def enter(name: str, tokens: int) -> None:
        await admission.enter_patiently(Cost(tokens, 10), Priority.BULK)
        entered.append(name)

    waiting = [asyncio.create_task(enter("large", 90)), asyncio.create_task(enter("small", 10))]
    await asyncio.sleep(0)
    filled(admission, 100, BULK)
    assert entered == []
    admission.leave(Cost(80, 10), Priority.BULK, patient=True)
    await asyncio.gather(*waiting)
    assert entered == ["large", "small"]


async def test_a_stream_that_gives_up_takes_nothing_along() -> None:
    """Whether cancelled while it waits or at the moment it is let in, a request leaves the queue as it was."""
    admission = Admission(400, 1000)
    await admission.enter_patiently(Cost(100, 10), Priority.BULK)
    waits = asyncio.create_task(admission.enter_patiently(Cost(50, 10), Priority.BULK))
    let_in = asyncio.create_task(admission.enter_patiently(Cost(60, 10), Priority.BULK))
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    admission.leave(Cost(100, 10), Priority.BULK, patient=True)
    let_in.cancel()
    await asyncio.gather(let_in, return_exceptions=True)
    assert not any([admission.tokens, *admission._bytes.values(), *admission._patient_tokens.values()])
    await admission.enter_patiently(Cost(100, 10), Priority.BULK)


async def test_interactive_streams_do_not_wait_for_those_of_bulk() -> None:
    """While requests of BULK streams wait for room, one of an INTERACTIVE stream has its own."""
    admission = Admission(400, 1 << 20)
    await admission.enter_patiently(Cost(100, 10), Priority.BULK)
    waiting = asyncio.create_task(admission.enter_patiently(Cost(100, 10), Priority.BULK))
    await asyncio.sleep(0)
    await admission.enter_patiently(Cost(90, 10), Priority.INTERACTIVE)
    assert not waiting.done()
    waiting.cancel()
