"""Admission, fair queueing and batching together, in a simulation: no needless refusals, and goodput under overload."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from isogloss.wire.enums import Priority

from tests.support.queue_simulation import Arrival, Outcome, Simulation, useful_tokens

SLOW = (0.002, 0.0002)  # seconds of a batch, and of each token
FAST = (0.0005, 0.00005)
CAPACITY = Simulation(SLOW).models[0].capacity  # 9,275 tokens a second on two threads


def times(rng: random.Random, per_s: float, seconds: float) -> Iterator[float]:
    """Yields the times of a Poisson process."""
    at_s = rng.expovariate(per_s)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(per_s)


def short(rng: random.Random) -> list[int]:
    """Returns the length of one short text."""
    return [rng.randint(5, 35)]


def any_size(rng: random.Random) -> list[int]:
    """Returns the lengths of 1 to 10,000 short texts, evenly distributed by logarithm."""
    return [rng.randint(5, 35)] * round(10 ** rng.uniform(0, 4))


def any_length(rng: random.Random) -> list[int]:
    """Returns the lengths of 1 to 30 texts of up to 512 tokens."""
    return [round(10 ** rng.uniform(0.7, 2.7)) for _ in range(rng.randint(1, 30))]


@dataclass(frozen=True)
class Mix:
    """Requests: their lengths, their timeouts in seconds, their priorities, and the seconds in which they arrive."""

    lengths: Callable[[random.Random], list[int]]
    timeouts_s: tuple[float, ...]
    priorities: tuple[Priority, ...] = (Priority.INTERACTIVE,)
    seconds: float = 30.0


MIXES = {
    "short": Mix(short, (1.0,), seconds=2.0),
    "sizes": Mix(any_size, (5.0, 20.0, 60.0, math.inf)),
    "lengths": Mix(any_length, (2.0, 10.0)),
    "priorities": Mix(any_length, (5.0, 20.0), tuple(Priority)),
}


def overload(mix: str, load: float) -> list[Arrival]:
    """Returns arrivals with `load` times as many tokens as one model can compute."""
    rng, what = random.Random(mix), MIXES[mix]
    mean_tokens = sum(sum(what.lengths(rng)) for _ in range(2000)) / 2000
    return [
        Arrival(
            at_s=at_s,
            lengths=what.lengths(rng),
            timeout_s=rng.choice(what.timeouts_s),
            priority=rng.choice(what.priorities),
        )
        for at_s in times(rng, load * CAPACITY / mean_tokens, what.seconds)
    ]


def refused(outcomes: list[Outcome]) -> list[int]:
    """Returns the indices of the refused requests."""
    return [index for index, outcome in enumerate(outcomes) if outcome.refused_retry_s is not None]


def share_in_time(outcomes: list[Outcome]) -> float:
    """Returns the share of requests that were answered in time."""
    return sum(outcome.in_time for outcome in outcomes) / len(outcomes)


@pytest.mark.parametrize(
    "warm", [pytest.param(True, marks=pytest.mark.long, id="warm"), pytest.param(False, id="cold")]
)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("samples", [1, pytest.param(5, marks=pytest.mark.long)])
def test_no_refused_request_would_have_met_its_deadline_with_a_margin_of_two(
    samples: int, mix: str, *, warm: bool
) -> None:
    """Each of some refusals is checked by running everything again.

    Under tenfold overload, a refused request that is admitted after all takes more than half of its deadline.
    """
    arrivals = overload(mix, 10)
    indices = refused(Simulation(SLOW, warm=warm).run(arrivals))
    assert indices
    for index in random.Random(mix).sample(indices, min(samples, len(indices))):
        forced = Simulation(SLOW, warm=warm).run(arrivals, admitted=index)[index]
        limit_s = min(forced.arrival.timeout_s, 30.0)  # max_wait_s
        assert forced.took_s is None or forced.took_s > limit_s / 2


@pytest.mark.parametrize("mix", MIXES)
def test_goodput_under_tenfold_overload_stays_at_nine_tenths_of_the_best(mix: str) -> None:
    """The tokens that are answered in time are at least 0.9 of those that the model can compute in that time."""
    outcomes = Simulation(SLOW).run(overload(mix, 10))
    assert useful_tokens(outcomes) >= 0.9 * CAPACITY * MIXES[mix].seconds


@pytest.mark.parametrize("mix", MIXES)
def test_nothing_is_refused_at_half_load(mix: str) -> None:
    """At half of the model's speed, every request without an exceptional size is admitted and answered in time."""
    arrivals = [arrival for arrival in overload(mix, 0.5) if sum(arrival.lengths) < 2 * CAPACITY]
    assert arrivals
    assert share_in_time(Simulation(SLOW).run(arrivals)) == 1


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_queries_beside_large_calls_are_all_answered(*, warm: bool) -> None:
    """One caller's calls of 200 long texts in a row refuse and delay no query of another caller."""
    large = [Arrival(at_s=8.5 * n, lengths=[400] * 200) for n in range(3)]
    queries = [Arrival(at_s=0.05 + n / 10, lengths=[12], timeout_s=10.0) for n in range(250)]
    arrivals = sorted([*large, *queries], key=lambda arrival: arrival.at_s)
    outcomes = Simulation(SLOW, warm=warm).run(arrivals)
    assert not refused(outcomes)
    # A text of 400 tokens takes 0.08 s, and the query is in one of the next batches.
    assert max(outcome.took_s or math.inf for outcome in outcomes if len(outcome.arrival.lengths) == 1) < 0.3


def ten_to_one(mix: str) -> tuple[list[Arrival], list[Arrival]]:
    """Returns calls of a quiet caller that take a tenth of one model, and ten times as many tokens of a greedy one.

    The quiet caller's calls have 8 to 32 short texts; those of the greedy one are of the mix.
    """
    rng, seconds = random.Random(mix), 20.0
    quiet_lengths = [[rng.randint(5, 35) for _ in range(rng.randint(8, 32))] for _ in range(2000)]
    greedy_lengths = [MIXES[mix].lengths(rng) for _ in range(2000)]

    def calls(caller: str, lengths: list[list[int]], load: float) -> list[Arrival]:
        per_s = load * CAPACITY / (sum(map(sum, lengths)) / len(lengths))
        return [
            Arrival(at_s=at_s, lengths=rng.choice(lengths), timeout_s=10.0, caller=caller)
            for at_s in times(rng, per_s, seconds)
        ]

    return calls("quiet", quiet_lengths, 0.1), calls("greedy", greedy_lengths, 1.0)


def percentile_s(outcomes: list[Outcome], share: float) -> float:
    """Returns the seconds within which a share of the requests were answered."""
    return sorted(outcome.took_s or math.inf for outcome in outcomes)[math.ceil(share * len(outcomes)) - 1]


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("mix", ["short", "lengths"])
def test_a_caller_with_ten_times_the_load_slows_another_by_less_than_a_factor_of_two(mix: str, *, warm: bool) -> None:
    """Beside the greedy caller, the quiet one's 99th percentile is within 2x of that alone, and nothing is refused."""
    quiet, greedy = ten_to_one(mix)
    alone = Simulation(SLOW, warm=warm).run(quiet)
    outcomes = Simulation(SLOW, warm=warm).run(sorted([*quiet, *greedy], key=lambda arrival: arrival.at_s))
    beside = [outcome for outcome in outcomes if outcome.arrival.caller == "quiet"]
    assert not refused(beside)
    assert percentile_s(beside, 0.99) <= 2 * percentile_s(alone, 0.99)
    assert useful_tokens(outcomes) >= 0.9 * CAPACITY * 20.0


@pytest.mark.parametrize("mix", MIXES)
def test_goodput_of_two_callers_under_tenfold_overload_stays_at_nine_tenths_of_the_best(mix: str) -> None:
    """With the load divided between two callers, as many tokens are answered in time, and each gets its share."""
    arrivals = [replace(arrival, caller="ab"[n % 2]) for n, arrival in enumerate(overload(mix, 10))]
    outcomes = Simulation(SLOW).run(arrivals)
    best = CAPACITY * MIXES[mix].seconds
    assert useful_tokens(outcomes) >= 0.9 * best
    for caller in "ab":
        assert useful_tokens([outcome for outcome in outcomes if outcome.arrival.caller == caller]) >= 0.35 * best


def test_an_overloaded_model_does_not_refuse_the_requests_of_another() -> None:
    """Two models share the cores; the requests of the one with little work are answered in time."""
    rng = random.Random(3)
    busy = overload("short", 10)
    quiet = [Arrival(at_s=at_s, lengths=short(rng), timeout_s=2.0, model=1) for at_s in times(rng, 10.0, 5.0)]
    outcomes = Simulation(SLOW, FAST).run(sorted([*busy, *quiet], key=lambda arrival: arrival.at_s))
    assert share_in_time([outcome for outcome in outcomes if outcome.arrival.model == 1]) == 1


def test_odd_texts_do_not_let_more_into_the_queue() -> None:
    """After texts of many bytes for a token, the real tokens still bound the queue, and most requests are in time."""
    rng = random.Random(4)
    odd = [Arrival(at_s=0.01 * n, lengths=[1], bytes_per_token=4_000_000) for n in range(50)]
    arrivals = [*odd, *(Arrival(at_s=1 + at_s, lengths=short(rng), timeout_s=2.0) for at_s in times(rng, 2000, 5))]
    outcomes = Simulation(SLOW).run(arrivals)
    admitted = [outcome for outcome in itertools.islice(outcomes, 50, None) if outcome.refused_retry_s is None]
    assert share_in_time(admitted) > 0.8


def test_retry_delays_are_well_before_the_deadline() -> None:
    """No retry delay exceeds a quarter of the time that its request has."""
    outcomes = Simulation(SLOW).run(overload("sizes", 10))
    assert all(
        (outcome.refused_retry_s or 0.0) <= min(5.0, outcome.arrival.timeout_s / 4) + 1e-9 for outcome in outcomes
    )
