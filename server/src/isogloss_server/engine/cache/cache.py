"""Known rows out, duplicates merged: what stands between the pipeline and every Embedder."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isogloss_server import metrics
from isogloss_server.clock import Clock
from isogloss_server.engine.cache.entries import Entry, entries_of, joined
from isogloss_server.engine.cache.flights import Flight, Flights
from isogloss_server.engine.cache.keys import keys_of
from isogloss_server.engine.cache.memory import Memory
from isogloss_server.engine.cache.shared import SharedCache
from isogloss_server.errors import RowFaults, TimeUpError
from isogloss_server.models.base import Embedded, Embedder, ModelCard, Role, Truncation, Urgency

STATIC = "static"  # the backend of models of which a text takes microseconds
FAILURES = 2  # that a call waits for; a text that fails whoever computes it would else fail its callers one by one

Texts = Mapping[bytes, str]  # distinct ones, by key


@dataclass(frozen=True, slots=True)
class _Levels:
    """Where a row may be known, nearest first."""

    memory: Memory
    flights: Flights
    shared: SharedCache | None
    clock: Clock


class Cache:
    """Asks memory, then who computes the same at the moment, then the shared cache, then the Embedder."""

    def __init__(
        self, clock: Clock, *, max_bytes: int, shared: SharedCache | None = None, static_models: bool = True
    ) -> None:
        """Takes what memory may hold, and whether static models use the cache; without bytes and shared none does."""
        self._levels = _Levels(Memory(max_bytes), Flights(), shared, clock)
        self._off = not max_bytes and shared is None
        self._static_models = static_models

    def start(self) -> None:
        """Begins what goes on in the background."""
        if self._levels.shared is not None:
            self._levels.shared.start()

    async def close(self) -> None:
        """Ends what goes on in the background."""
        if self._levels.shared is not None:
            await self._levels.shared.close()

    def serves(self, card: ModelCard) -> bool:
        """Returns whether a model uses the cache."""
        return not self._off and (self._static_models or card.backend != STATIC)

    def knows(self, card: ModelCard, texts: Sequence[str], role: Role, truncation: Truncation) -> bool:
        """Returns whether memory has every one of the texts."""
        return self.serves(card) and None not in self._levels.memory.find(keys_of(texts, card, role, truncation))

    async def embed(
        self, embedder: Embedder, texts: Sequence[str], role: Role, truncation: Truncation, urgency: Urgency
    ) -> Embedded:
        """Returns what `embedder.embed` gives for the texts, of which it is asked for those that nobody knows.

        Raises:
            RowFaults: some texts cannot be embedded; all of them are named.
            DomainError: what became of a computation, or the deadline passed while the call waited for another's.
        """
        if not self.serves(embedder.card):
            return await embedder.embed(texts, role, truncation, urgency)
        keys = keys_of(texts, embedder.card, role, truncation)
        found = self._levels.memory.find(keys)
        call = _Call(self._levels, embedder, (role, truncation), urgency)
        try:
            known = await call.resolve(
                {key: text for key, text, entry in zip(keys, texts, found, strict=True) if not entry}
            )
        except RowFaults:  # with the numbers of the rows that were asked for, which are not this call's
            return await embedder.embed(texts, role, truncation, urgency)
        call.count(len(texts), found.count(None))
        if len(call.computed) == 1 and len(call.computed[0].rows) == len(texts):
            return call.computed[0]  # nothing was known, and no text came twice
        entries = [entry or known[key] for key, entry in zip(keys, found, strict=True)]
        return joined(entries, call.computed, waited_s=call.waited_s)


class _Call:
    """One call's way to the rows that memory does not have."""

    def __init__(self, levels: _Levels, embedder: Embedder, manner: tuple[Role, Truncation], urgency: Urgency) -> None:
        self.computed: list[Embedded] = []  # by this call
        self.waited_s = 0.0  # for computations of others
        self._shared_rows = 0
        self._levels = levels
        self._embedder = embedder
        self._manner = manner
        self._urgency = urgency

    async def resolve(self, missing: Texts) -> dict[bytes, Entry]:
        """Returns an entry for each text: from whoever computes it at the moment, else by computing it.

        Computing goes first and waits for nobody, so that no two calls can wait for each other. Where another's ends
        without an entry, the first of those who waited computes, and the others wait for that one.
        """
        known: dict[bytes, Entry] = {}
        failures = 0
        while missing:
            flights = self._levels.flights.of(missing, self._urgency.priority) if failures < FAILURES else {}
            own = {key: text for key, text in missing.items() if key not in flights}
            if own:
                known |= await self._compute(own)
            failed = False
            for flight in dict.fromkeys(flights.values()):
                await self._wait(flight)
                failed |= flight.failed
            failures += failed
            known |= {key: flight.entries[key] for key, flight in flights.items() if key in flight.entries}
            missing = self._unknown(missing, known)
        return known

    def count(self, texts: int, misses: int) -> None:
        """Tells the metrics of a call of which memory did not have `misses` texts."""
        computed = sum(len(part.rows) for part in self.computed) + self._shared_rows
        for outcome, rows in (("hit", texts - misses), ("joined", misses - computed), ("miss", computed)):
            if rows:
                metrics.CACHE_ROWS.labels("memory", outcome).inc(rows)

    def _unknown(self, texts: Texts, known: dict[bytes, Entry]) -> Texts:
        """Returns the texts that are still not known; those that memory has meanwhile become so."""
        left = [key for key in texts if key not in known]
        if left:
            known |= {key: entry for key, entry in zip(left, self._levels.memory.find(left), strict=True) if entry}
        return {key: texts[key] for key in left if key not in known}

    async def _compute(self, texts: Texts) -> dict[bytes, Entry]:
        """Returns the entries of texts that nobody else is to compute meanwhile."""
        levels = self._levels
        with levels.flights.begin(list(texts), self._urgency.priority) as entries:
            if levels.shared is not None:
                entries.update(await levels.shared.find(list(texts), self._embedder.card.dimensions[0]))
                self._shared_rows += len(entries)
                texts = {key: text for key, text in texts.items() if key not in entries}
            if texts:
                embedded = await self._embedder.embed(list(texts.values()), *self._manner, self._urgency)
                computed = dict(zip(texts, entries_of(embedded), strict=True))
                self.computed.append(embedded)
                if levels.shared is not None:
                    levels.shared.put(computed)
                entries.update(computed)
            levels.memory.put(entries)
            return entries

    async def _wait(self, flight: Flight) -> None:
        """Waits for another's computation; whatever ends this wait ends nothing else."""
        began_s = self._levels.clock.monotonic_s()
        left_s = None if self._urgency.deadline_s == math.inf else self._urgency.deadline_s - began_s
        try:
            async with asyncio.timeout(left_s):
                await flight.wait()
        except TimeoutError:
            raise TimeUpError("the deadline passed while another call computed the same text") from None
        finally:
            self.waited_s += self._levels.clock.monotonic_s() - began_s
