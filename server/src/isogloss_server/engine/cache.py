"""Caches rows in memory and coalesces requests for the same text; asks a shared cache behind it."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from isogloss.wire.enums import InputType, Priority, Truncation

from isogloss_server import metrics
from isogloss_server.clock import Clock
from isogloss_server.engine.shared_cache import Entry, SharedCache
from isogloss_server.errors import DeadlineExceededError, RowFaults
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Urgency

KEY_BYTES = 32
ENTRY_BYTES = 400  # what key, tuple, count and table take beside a row's own bytes; measured: 350, more while it grows
STATIC = "static"  # the backend of models of which a text takes microseconds
FAILURES = 2  # that a call waits for; a text that fails whoever computes it would else fail its callers one by one


def to_entries(embedded: Embedded) -> list[Entry]:
    """Returns each row by itself, holding on to nothing of the others."""
    data, size = embedded.rows.tobytes(), embedded.rows.shape[1] * embedded.rows.itemsize
    n, counts = len(embedded.rows), embedded.token_counts
    tokens: Sequence[int | None] = [None] * n if counts is None else counts.tolist()
    entries = [(data[at * size : (at + 1) * size], tokens[at], False) for at in range(n)]
    for at in embedded.truncated_rows:
        entries[at] = (*entries[at][:2], True)
    return entries


def join_entries(entries: Sequence[Entry], computed: Sequence[Embedded], *, waited_s: float) -> Embedded:
    """Returns the rows of `entries`, of which some come from what was `computed` for this call.

    Where token counts are known, a row counts as many as when it was computed; a provider bills what it computed.
    """
    rows = np.frombuffer(b"".join([row for row, _, _ in entries]), np.float32).reshape(len(entries), -1)
    tokens = [count for _, count, _ in entries if count is not None]
    known = len(tokens) == len(entries)
    return Embedded(
        rows=rows,
        token_counts=np.array(tokens, np.int64) if known else None,
        truncated_rows=tuple([row for row, (_, _, cut) in enumerate(entries) if cut]),
        total_tokens=sum(tokens) if known else sum(part.total_tokens for part in computed),
        cached_rows=len(entries) - sum(len(part.rows) for part in computed),
        tokenization_s=sum(part.tokenization_s for part in computed),
        queue_s=waited_s + sum(part.queue_s for part in computed),
        inference_s=sum(part.inference_s for part in computed),
    )


def cache_keys(texts: Sequence[str], card: ModelCard, input_type: InputType, truncation: Truncation) -> list[bytes]:
    """Returns the key of each text, of KEY_BYTES bytes.

    The runtime is part of it beside the space: bf16 and f32 share a space, but whoever chose f32 wants no row of a
    bf16 server. The input type is part of the key if the model has prompts for input types.
    """
    manner = (card.backend, card.space_id, input_type.value if card.has_roles else "", truncation.value)
    begun = blake2b("".join(f"{word}\0" for word in manner).encode(), digest_size=KEY_BYTES)
    keys = []
    for text in texts:
        digest = begun.copy()  # half the time of a new one
        digest.update(text.encode())
        keys.append(digest.digest())
    return keys


class MemoryCache:
    """A table of entries; what was used longest ago goes first."""

    def __init__(self, max_bytes: int) -> None:
        """Takes the bytes that all entries may take together, with all that is needed to keep them; 0 keeps none."""
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Returns the entry of each key, or None."""
        get, used = self._entries.get, self._entries.move_to_end
        found = []
        for key in keys:
            entry = get(key)
            if entry is not None:
                used(key)
            found.append(entry)
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keeps entries; the first of a key stays, so that a text's row does not change while it is kept."""
        kept, evicted = self._entries, 0
        for key, entry in entries.items():
            cost = len(entry[0]) + ENTRY_BYTES
            if key in kept or cost > self._max_bytes:
                continue
            kept[key] = entry
            self.size_bytes += cost
            while self.size_bytes > self._max_bytes:
                _, (row, _, _) = kept.popitem(last=False)
                self.size_bytes -= len(row) + ENTRY_BYTES
                evicted += 1
        metrics.CACHE_BYTES.set(self.size_bytes)
        if evicted:
            metrics.CACHE_EVICTIONS.inc(evicted)


class InFlight:
    """One call's computation of some texts, from its begin to its end."""

    __slots__ = ("_ended", "entries", "failed", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.entries: dict[bytes, Entry] = {}  # complete once it has ended well
        self.failed = False  # of itself, not because its caller left or ran out of time
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        """Returns once it has ended, well or not."""
        await self._ended.wait()

    def end(self) -> None:
        """Wakes those who wait."""
        self._ended.set()


class InFlightRequests:
    """All that is being computed, by key."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, InFlight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, keys: Iterable[bytes], priority: Priority) -> dict[bytes, InFlight]:
        """Returns those that a caller may wait for: an INTERACTIVE one never waits for what BULK computes."""
        found = {key: flight for key in keys if (flight := self._by_key.get(key)) is not None}
        if priority is Priority.BULK:
            return found
        return {key: flight for key, flight in found.items() if flight.priority is not Priority.BULK}

    @contextmanager
    def begin(self, keys: Sequence[bytes], priority: Priority) -> Iterator[dict[bytes, Entry]]:
        """Gives the table that the block is to fill; until it ends, others find a flight for each key.

        The flight goes before others of the same keys, which an INTERACTIVE call does not wait for. However the block
        ends, those who wait are woken, and take what is in the table.
        """
        flight = InFlight(priority)
        self._by_key.update(dict.fromkeys(keys, flight))
        try:
            yield flight.entries
        except (asyncio.CancelledError, DeadlineExceededError):
            raise
        except BaseException:
            flight.failed = True
            raise
        finally:
            for key in keys:
                if self._by_key.get(key) is flight:
                    del self._by_key[key]
            flight.end()


Texts = Mapping[bytes, str]  # distinct ones, by key


@dataclass(frozen=True, slots=True)
class _Levels:
    """Where a row may be known, nearest first."""

    memory: MemoryCache
    flights: InFlightRequests
    shared: SharedCache | None
    clock: Clock


class Cache:
    """Asks memory, then who computes the same at the moment, then the shared cache, then the Embedder."""

    def __init__(
        self, clock: Clock, *, max_bytes: int, shared: SharedCache | None = None, static_models: bool = True
    ) -> None:
        """Takes what memory may hold, and whether static models use the cache; without bytes and shared none does."""
        self._levels = _Levels(MemoryCache(max_bytes), InFlightRequests(), shared, clock)
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

    def knows(self, card: ModelCard, texts: Sequence[str], input_type: InputType, truncation: Truncation) -> bool:
        """Returns whether memory has every one of the texts."""
        return self.serves(card) and None not in self._levels.memory.find(
            cache_keys(texts, card, input_type, truncation)
        )

    async def embed(
        self, embedder: Embedder, texts: Sequence[str], input_type: InputType, truncation: Truncation, urgency: Urgency
    ) -> Embedded:
        """Returns what `embedder.embed` gives for the texts, of which it is asked for those that nobody knows.

        Raises:
            RowFaults: some texts cannot be embedded; all of them are named.
            DomainError: what became of a computation, or the deadline passed while the call waited for another's.
        """
        if not self.serves(embedder.card):
            return await embedder.embed(texts, input_type, truncation, urgency)
        keys = cache_keys(texts, embedder.card, input_type, truncation)
        found = self._levels.memory.find(keys)
        call = _Lookup(self._levels, embedder, (input_type, truncation), urgency)
        try:
            known = await call.resolve(
                {key: text for key, text, entry in zip(keys, texts, found, strict=True) if not entry}
            )
        except RowFaults:  # with the numbers of the rows that were asked for, which are not this call's
            return await embedder.embed(texts, input_type, truncation, urgency)
        call.count(len(texts), found.count(None))
        if len(call.computed) == 1 and len(call.computed[0].rows) == len(texts):
            return call.computed[0]  # nothing was known, and no text came twice
        entries = [entry or known[key] for key, entry in zip(keys, found, strict=True)]
        return join_entries(entries, call.computed, waited_s=call.waited_s)


class _Lookup:
    """One call's way to the rows that memory does not have."""

    def __init__(
        self, levels: _Levels, embedder: Embedder, manner: tuple[InputType, Truncation], urgency: Urgency
    ) -> None:
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
                computed = dict(zip(texts, to_entries(embedded), strict=True))
                self.computed.append(embedded)
                if levels.shared is not None:
                    levels.shared.put(computed)
                entries.update(computed)
            levels.memory.put(entries)
            return entries

    async def _wait(self, flight: InFlight) -> None:
        """Waits for another's computation; whatever ends this wait ends nothing else."""
        began_s = self._levels.clock.monotonic_s()
        left_s = None if self._urgency.deadline_s == math.inf else self._urgency.deadline_s - began_s
        try:
            async with asyncio.timeout(left_s):
                await flight.wait()
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed while another call computed the same text") from None
        finally:
            self.waited_s += self._levels.clock.monotonic_s() - began_s
