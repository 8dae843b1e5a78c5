"""Backlog: the work that waits for a resource, its measured speed, and the time until new work would be done."""

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from isogloss.wire.enums import Priority

LONGEST_TURN_S = 0.25  # of a batch: a slow model computes smaller ones, so that a text does not wait long for its own
SHORT_BACKLOG_TURNS = 4  # of work; below this no request waits long enough for an estimate
BUCKETS = 64
ARRIVALS_MEMORY_S = 5.0  # a request that arrived so long ago has a weight of 1 / e in the arriving work
ARRIVALS_STEP_S = 0.25
LARGEST_ARRIVING_SHARE = 0.5  # of the speed, so that no wait is endless


class Throughput:
    """Units of work a second on one lane, such as tokens a second of one batcher thread.

    Safe from any thread. Only pieces of at least `full_units` determine `rate`: smaller ones mostly measure fixed
    costs, so that light load would make the lane look slow. Recent pieces have the greatest weight.
    """

    def __init__(self, *, full_units: float, memory_units: float) -> None:
        """Takes the size of a piece that counts, and the units after which a measurement has a weight of 1 / e."""
        self._full_units = full_units
        self._memory_units = memory_units
        self._rate = 0.0
        self._any_rate = 0.0
        self._lock = threading.Lock()

    @property
    def rate(self) -> float:
        """Units a second of one lane on full pieces; 0 before the first."""
        return self._rate

    @property
    def cautious_rate(self) -> float:
        """A lower estimate of the units a second, from pieces of any size; 0 before the first."""
        return min(self._rate or math.inf, self._any_rate)

    def record(self, units: float, seconds: float) -> None:
        """Records a piece of work that one lane has finished."""
        if units <= 0 or seconds <= 0:
            return
        rate = units / seconds
        weight = 1 - math.exp(-units / self._memory_units)
        with self._lock:
            self._any_rate += (weight if self._any_rate else 1.0) * (rate - self._any_rate)
            if units >= self._full_units:
                self._rate += (weight if self._rate else 1.0) * (rate - self._rate)


class Estimate(NamedTuple):
    """Seconds until a new request ends.

    Attributes:
        others_s: Of the work of other requests before that.
        total_s: In all, if smaller requests keep arriving as they did recently.
    """

    others_s: float
    total_s: float


class Backlog:
    """Work of requests that wait or are computed on the lanes of one resource, such as a model's threads.

    Requests share the resource equally, so that a request of u units waits for at most u units of each other request.
    The work is kept in buckets by size, so that an estimate does not depend on the number of requests.
    """

    def __init__(self, throughput: Throughput, *, lanes: int, turn: int, bulk_share: float = 1.0) -> None:
        """Creates an empty backlog.

        Args:
            throughput: The measured speed of one lane.
            lanes: Pieces of work computed at a time.
            turn: Units of the largest piece, such as the tokens of a batch.
            bulk_share: Share of the speed that BULK gets while INTERACTIVE waits too; 1 for a resource without
                priorities.
        """
        self.throughput = throughput
        self.turn = turn
        self.lanes = lanes
        self._bulk_share = bulk_share
        self._counts = {priority: [0] * BUCKETS for priority in Priority}
        self._units = {priority: [0.0] * BUCKETS for priority in Priority}
        self._computed: deque[tuple[Work, float]] = deque()  # reported by threads
        self._arrived = [0.0] * BUCKETS  # units of recent requests, by size, weighted by age
        self._arrived_at_s = -math.inf

    @property
    def speed(self) -> float:
        """Units a second of all lanes together; 0 if not known yet."""
        return self.throughput.rate * self.lanes

    @property
    def is_busy(self) -> bool:
        """True if the speed is known, and there is enough work for requests to wait."""
        return self.speed > 0 and self.total() > SHORT_BACKLOG_TURNS * self.turn

    def total(self, *priorities: Priority) -> float:
        """Returns the units of these priorities, or of all."""
        self._apply_progress()
        return sum(sum(self._units[priority]) for priority in priorities or Priority)

    def add(self, priority: Priority, units: float, now_s: float) -> "Work":
        """Adds the work of a request that arrives now."""
        self._apply_progress()
        self._age_arrivals(now_s)
        self._arrived[_bucket(units)] += units
        work = Work(self, priority, units)
        self.count(work, 1)
        return work

    def estimate(self, priority: Priority, units: float, now_s: float) -> "Estimate":
        """Returns when a new request would end. The speed must be known."""
        others_s, own_s = self._wait_s(priority, units)
        self._age_arrivals(now_s)
        arriving = sum(self._arrived[: _bucket(units) + 1]) / ARRIVALS_MEMORY_S / self.speed
        return Estimate(others_s, (others_s + own_s) / (1 - min(arriving, LARGEST_ARRIVING_SHARE)))

    def _wait_s(self, priority: Priority, units: float) -> tuple[float, float]:
        """Returns the seconds of other requests' work before the end of a new request, and of its own."""
        turn_s = min(self.turn / self.throughput.rate, LONGEST_TURN_S)  # its own texts are in a batch with others
        if self._bulk_share == 1.0:
            return turn_s + sum(self._shared(each, units) for each in Priority) / self.speed, units / self.speed
        before = self._shared(priority, units)
        if priority is Priority.INTERACTIVE:
            speed = self.speed * (1 - self._bulk_share if self.total(Priority.BULK) else 1.0)
            return turn_s + before / speed, units / speed
        # Either all of INTERACTIVE comes first, or BULK ends before that in its own share.
        interactive = min(self.total(Priority.INTERACTIVE), (before + units) * (1 / self._bulk_share - 1))
        return turn_s + (before + interactive) / self.speed, units / self.speed

    def _shared(self, priority: Priority, most: float) -> float:
        """Returns the sum of min(units, most) over the requests of one priority; exact but for one bucket."""
        self._apply_progress()
        counts, units, at = self._counts[priority], self._units[priority], _bucket(most)
        larger = sum(counts[at + 1 :]) * most
        return sum(units[:at]) + min(units[at], counts[at] * most) + larger

    def _age_arrivals(self, now_s: float) -> None:
        if now_s - self._arrived_at_s < ARRIVALS_STEP_S:
            return
        weight = math.exp((self._arrived_at_s - now_s) / ARRIVALS_MEMORY_S)
        self._arrived_at_s = now_s
        self._arrived = [units * weight for units in self._arrived]

    def _apply_progress(self) -> None:
        while self._computed:
            work, units = self._computed.popleft()
            if work.is_open:
                work.set(max(0.0, work.units - units))

    def report(self, work: "Work", units: float) -> None:
        """Records computed units of a request; safe from any thread."""
        self._computed.append((work, units))

    def count(self, work: "Work", sign: int) -> None:
        """Adds the work to its bucket, or removes it with a sign of -1."""
        at = _bucket(work.units)
        self._counts[work.priority][at] += sign
        # An empty bucket has no units: rounding errors must not accumulate.
        total = self._units[work.priority][at] + sign * work.units
        self._units[work.priority][at] = total if self._counts[work.priority][at] else 0.0


@dataclass(slots=True, eq=False)
class Work:
    """Units of one request in a backlog, until `close`."""

    backlog: Backlog
    priority: Priority
    units: float
    is_open: bool = True

    def set(self, units: float) -> None:
        """Changes the units that are left."""
        if self.is_open and units != self.units:
            self.backlog.count(self, -1)
            self.units = units
            self.backlog.count(self, 1)

    def close(self) -> None:
        """Removes the work from the backlog."""
        if self.is_open:
            self.backlog.count(self, -1)
            self.is_open = False


def _bucket(units: float) -> int:
    return min(int(units).bit_length(), BUCKETS - 1)
