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
FORGOTTEN_UNITS = 1e-3  # of a caller that has sent none for long
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

    Callers share the resource equally, and so do the requests of one caller. So a request of u units waits for at most
    u units of each other request of its caller, and for at most as many units of each other caller as its own needs
    until then. The work of a caller is kept in buckets by size, so that an estimate does not depend on the number of
    requests. Unknown callers, "", count as one.
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
        self._open: dict[Priority, dict[str, _Sizes]] = {priority: {} for priority in Priority}  # by caller, none empty
        self._computed: deque[tuple[Work, float]] = deque()  # reported by threads
        self._arrived: dict[str, list[float]] = {}  # units of each caller's recent requests, by size, weighted by age
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
        return sum(sizes.total for priority in priorities or Priority for sizes in self._open[priority].values())

    def add(self, priority: Priority, units: float, now_s: float, caller: str = "") -> "Work":
        """Adds the work of a request that arrives now."""
        self._apply_progress()
        self._age_arrivals(now_s)
        self._arrived.setdefault(caller, [0.0] * BUCKETS)[_bucket(units)] += units
        work = Work(self, priority, units, caller)
        self.count(work, 1)
        return work

    def estimate(self, priority: Priority, units: float, now_s: float, caller: str = "") -> "Estimate":
        """Returns when a new request would end. The speed must be known."""
        self._apply_progress()
        self._age_arrivals(now_s)
        others_s, own_s = self._wait_s(priority, units, caller)
        total_s = (others_s + own_s) * self._dilution(units, *self._arrived)
        if self._others(caller):  # what arrives from them later takes no more than their share
            longest_s, _ = self._wait_s(priority, units, caller, others_full=True)
            total_s = min(total_s, (longest_s + own_s) * self._dilution(units, caller))
        return Estimate(others_s, total_s)

    def _others(self, caller: str) -> set[str]:
        """Returns the other callers with work now or recently."""
        return {*self._arrived}.union(*self._open.values()) - {caller}

    def _dilution(self, units: float, *callers: str) -> float:
        """Returns the factor by which these callers' smaller requests that keep arriving prolong a request."""
        arrived = (sum(self._arrived[caller][: _bucket(units) + 1]) for caller in callers if caller in self._arrived)
        return 1 / (1 - min(sum(arrived) / ARRIVALS_MEMORY_S / self.speed, LARGEST_ARRIVING_SHARE))

    def _wait_s(
        self, priority: Priority, units: float, caller: str, *, others_full: bool = False
    ) -> tuple[float, float]:
        """Returns the seconds of other requests' work before the end of a new request, and of its own.

        If `others_full`, each other caller takes all of its share.
        """
        turn_s = min(self.turn / self.throughput.rate, LONGEST_TURN_S)  # its own texts are in a batch with others
        if self._bulk_share == 1.0:
            before = self._before(tuple(Priority), units, caller, others_full=others_full)
            return turn_s + before / self.speed, units / self.speed
        before = self._before((priority,), units, caller, others_full=others_full)
        if priority is Priority.INTERACTIVE:
            speed = self.speed * (1 - self._bulk_share if self.total(Priority.BULK) else 1.0)
            return turn_s + before / speed, units / speed
        # Either all of INTERACTIVE comes first, or BULK ends before that in its own share.
        interactive = min(self.total(Priority.INTERACTIVE), (before + units) * (1 / self._bulk_share - 1))
        return turn_s + (before + interactive) / self.speed, units / self.speed

    def _before(self, priorities: tuple[Priority, ...], units: float, caller: str, *, others_full: bool) -> float:
        """Returns the units of other requests of these priorities before the end of a new one."""
        own = sum(self._open[each][caller].shared(units) for each in priorities if caller in self._open[each])
        most = own + units
        before = own
        for other in self._others(caller):
            total = sum(self._open[each][other].total for each in priorities if other in self._open[each])
            before += most if others_full else min(total, most)
        return before

    def _age_arrivals(self, now_s: float) -> None:
        if now_s - self._arrived_at_s < ARRIVALS_STEP_S:
            return
        weight = math.exp((self._arrived_at_s - now_s) / ARRIVALS_MEMORY_S)
        self._arrived_at_s = now_s
        self._arrived = {
            caller: [units * weight for units in arrived]
            for caller, arrived in self._arrived.items()
            if sum(arrived) * weight > FORGOTTEN_UNITS
        }

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
        callers = self._open[work.priority]
        sizes = callers.get(work.caller)
        if sizes is None:
            sizes = callers[work.caller] = _Sizes()
        sizes.count(work.units, sign)
        if not sizes.requests:
            del callers[work.caller]


class _Sizes:
    """Work of the requests of one caller and priority, by size."""

    __slots__ = ("_counts", "_units", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self._counts = [0] * BUCKETS
        self._units = [0.0] * BUCKETS

    @property
    def total(self) -> float:
        """Units of all requests."""
        return sum(self._units)

    def shared(self, most: float) -> float:
        """Returns the sum of min(units, most) over the requests; exact but for one bucket."""
        counts, units, at = self._counts, self._units, _bucket(most)
        larger = sum(counts[at + 1 :]) * most
        return sum(units[:at]) + min(units[at], counts[at] * most) + larger

    def count(self, units: float, sign: int) -> None:
        """Adds a request, or removes it with a sign of -1."""
        at = _bucket(units)
        self.requests += sign
        self._counts[at] += sign
        # An empty bucket has no units: rounding errors must not accumulate.
        self._units[at] = self._units[at] + sign * units if self._counts[at] else 0.0


@dataclass(slots=True, eq=False)
class Work:
    """Units of one request in a backlog, until `close`."""

    backlog: Backlog
    priority: Priority
    units: float
    caller: str = ""
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
