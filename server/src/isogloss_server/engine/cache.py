"""Cache of rows, and request coalescing: a text that a provider computes for one request is not sent for another.

Looks in memory, then for an in-flight call to a provider with the same text, then in the shared cache; the embedder
computes the rest. Equal texts of a local model meet in its batch queue instead. If callers are isolated, none of these
places has anything for a caller that another one has embedded.
"""

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from isogloss.wire.enums import InputType, Priority, Truncation

from isogloss_server import metrics
from isogloss_server.clock import Clock
from isogloss_server.engine.shared_cache import Entry, SharedCache
from isogloss_server.errors import DeadlineExceededError, DomainError
from isogloss_server.models.interfaces import Embedded, Embedder, ModelCard, Urgency

KEY_BYTES = 32
ENTRY_BYTES = 400  # of an entry without its row: key, tuple, count, table; measured: 350, more while the table grows
STATIC = "static"  # backend of models that take microseconds for a text
# Failed computations of others to wait for before computing here; bounds the delay for a text that always fails.
MAX_FAILED_WAITS = 2

Texts = Mapping[bytes, str]  # distinct texts by key
_Stored = tuple[bytes, int | None, bool, str]  # an entry, and the name of its model


class Cache:
    """Finds rows in memory, in-flight computations and the shared cache; calls the embedder for the rest."""

    def __init__(
        self,
        clock: Clock,
        *,
        max_bytes: int,
        shared: SharedCache | None = None,
        static_models: bool = True,
        isolated: bool = True,
    ) -> None:
        """Creates a cache; without memory and shared cache, no model uses it.

        Args:
            clock: The clock.
            max_bytes: Most bytes in memory.
            shared: The cache that other servers share.
            static_models: Whether static models use it.
            isolated: Whether each caller has its own entries.
        """
        self._levels = _Levels(MemoryCache(max_bytes), InFlightTexts(), shared, clock)
        self._off = not max_bytes and shared is None
        self._static_models = static_models
        self._isolated = isolated

    def start(self) -> None:
        """Starts the background tasks of the shared cache."""
        if self._levels.shared is not None:
            self._levels.shared.start()

    async def close(self) -> None:
        """Ends the background tasks."""
        if self._levels.shared is not None:
            await self._levels.shared.close()

    def is_used_by(self, card: ModelCard) -> bool:
        """Returns whether a model uses the cache."""
        return not self._off and (self._static_models or card.backend != STATIC)

    def has(
        self, card: ModelCard, texts: Sequence[str], input_type: InputType, truncation: Truncation, caller: str = ""
    ) -> bool:
        """Returns whether memory has all of the texts, for this caller."""
        if not self.is_used_by(card):
            return False
        keys = cache_keys(texts, card, input_type, truncation, caller=self._owner(caller))
        return None not in self._levels.memory.find(keys)

    def _owner(self, caller: str) -> str:
        return caller if self._isolated else ""

    async def embed(
        self,
        embedder: Embedder,
        texts: Sequence[str],
        input_type: InputType,
        truncation: Truncation,
        urgency: Urgency,
        *,
        allow_partial: bool = False,
        model: str = "",
    ) -> Embedded:
        """Returns the result that `embedder.embed` would return; each distinct text is embedded at most once.

        The metrics count its rows under the name `model`.

        Raises:
            DomainError: the computation failed, or the deadline passed while the call waited for another computation.
        """
        if not self.is_used_by(embedder.card):
            return await embedder.embed(texts, input_type, truncation, urgency, allow_partial=allow_partial)
        keys = cache_keys(texts, embedder.card, input_type, truncation, caller=self._owner(urgency.caller))
        from_memory = self._levels.memory.find(keys)
        lookup = _Lookup(
            self._levels, embedder, (input_type, truncation), urgency, allow_partial=allow_partial, model=model
        )
        missing = {key: text for key, text, entry in zip(keys, texts, from_memory, strict=True) if entry is None}
        known = await lookup.resolve(missing)
        lookup.count(len(texts), from_memory.count(None))
        row_errors = {row: lookup.row_errors[key] for row, key in enumerate(keys) if key in lookup.row_errors}
        if row_errors and not allow_partial:
            return Embedded.failed(len(texts), embedder.card.dimensions[0], row_errors)
        if len(lookup.computed) == 1 and len(lookup.computed[0].rows) == len(texts):
            only = lookup.computed[0]  # nothing was cached, and no text was repeated
            return replace(only, queue_s=only.queue_s + lookup.waited_s) if lookup.waited_s else only
        good = [row for row in range(len(texts)) if row not in row_errors]
        entries = [from_memory[row] or known[keys[row]] for row in good]
        embedded = join_entries(entries, lookup.computed, embedder.card.dimensions[0], waited_s=lookup.waited_s)
        return embedded.spread(good, len(texts), row_errors) if row_errors else embedded


class MemoryCache:
    """LRU cache of entries in this process, for all models together, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Creates a cache whose entries occupy at most `max_bytes` bytes, overhead included; 0 stores none."""
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, _Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Returns the entry of each key, or None."""
        get, mark_used = self._entries.get, self._entries.move_to_end
        entries: list[Entry | None] = []
        for key in keys:
            stored = get(key)
            if stored is None:
                entries.append(None)
            else:
                mark_used(key)
                entries.append(stored[:3])
        return entries

    def put(self, entries: Mapping[bytes, Entry], model: str = "") -> None:
        """Stores entries of one model.

        A stored entry is not replaced, so that a text's row does not change while it is cached.
        """
        kept, evicted = self._entries, Counter[str]()
        for key, entry in entries.items():
            cost = len(entry[0]) + ENTRY_BYTES
            if key in kept or cost > self._max_bytes:
                continue
            kept[key] = (*entry, model)
            self.size_bytes += cost
            while self.size_bytes > self._max_bytes:
                _, (row, _, _, its_model) = kept.popitem(last=False)
                self.size_bytes -= len(row) + ENTRY_BYTES
                evicted[its_model] += 1
        metrics.CACHE_BYTES.set(self.size_bytes)
        for its_model, rows in evicted.items():
            metrics.CACHE_EVICTIONS.labels(its_model).inc(rows)


class InFlight:
    """Computation of some texts for one request, until it ends.

    Attributes:
        priority: Priority of the request.
        texts: Number of its texts.
        entries: Entries by key; keys that are missing at the end were not computed.
        failed: Whether it failed by itself, rather than by cancellation or a deadline.
    """

    __slots__ = ("_ended", "entries", "failed", "priority", "texts")

    def __init__(self, texts: int, priority: Priority) -> None:
        self.texts = texts
        self.priority = priority
        self.entries: dict[bytes, Entry] = {}
        self.failed = False
        self._ended = asyncio.Event()

    async def wait(self) -> None:
        """Returns when the computation has ended, for any reason."""
        await self._ended.wait()

    def end(self) -> None:
        """Marks the computation as ended and resumes the waiting requests."""
        self._ended.set()


class InFlightTexts:
    """All in-flight computations, by key."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, InFlight] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, keys: Iterable[bytes], priority: Priority, texts_per_call: int) -> dict[bytes, InFlight]:
        """Returns the computations to wait for, by key.

        An INTERACTIVE request waits neither for BULK nor for more than one call to the provider.
        """
        computations = {key: in_flight for key in keys if (in_flight := self._by_key.get(key)) is not None}
        if priority is Priority.BULK:
            return computations
        return {
            key: in_flight
            for key, in_flight in computations.items()
            if in_flight.priority is not Priority.BULK and in_flight.texts <= texts_per_call
        }

    @contextmanager
    def begin(self, keys: Sequence[bytes], priority: Priority) -> Iterator[InFlight]:
        """Registers an in-flight computation for `keys` and yields it; other requests for these keys await it.

        It replaces a computation of the same keys, such as one of BULK that INTERACTIVE does not wait for. When the
        block ends, for any reason, the waiting requests resume and use its entries.
        """
        in_flight = InFlight(len(keys), priority)
        self._by_key.update(dict.fromkeys(keys, in_flight))
        try:
            yield in_flight
        except (asyncio.CancelledError, DeadlineExceededError):
            raise
        except BaseException:
            in_flight.failed = True
            raise
        finally:
            for key in keys:
                if self._by_key.get(key) is in_flight:
                    del self._by_key[key]
            in_flight.end()


@dataclass(frozen=True, slots=True)
class _Levels:
    """Places that may have a row, fastest first."""

    memory: MemoryCache
    in_flight: InFlightTexts
    shared: SharedCache | None
    clock: Clock


class _Lookup:
    """Resolves the texts of one call that memory does not have.

    Attributes:
        computed: Results of the embedder for this call.
        row_errors: Errors of texts that cannot be embedded, by key.
        waited_s: Seconds spent on computations of other requests.
    """

    def __init__(
        self,
        levels: _Levels,
        embedder: Embedder,
        options: tuple[InputType, Truncation],
        urgency: Urgency,
        *,
        allow_partial: bool,
        model: str,
    ) -> None:
        self.computed: list[Embedded] = []
        self.row_errors: dict[bytes, DomainError] = {}
        self.waited_s = 0.0
        self._embedded_rows = 0
        self._shared_rows = 0
        self._examined: set[bytes] = set()  # texts whose row errors are known, though they were not computed
        self._levels = levels
        self._embedder = embedder
        self._options = options
        self._urgency = urgency
        self._allow_partial = allow_partial
        self._model = model

    async def resolve(self, missing: Texts) -> dict[bytes, Entry]:
        """Returns an entry for each text without a row error: from an in-flight computation, else computed here.

        Computes its own texts before it waits, so that two calls cannot wait for each other. If another computation
        ends without an entry, the first waiting call computes it, and the others wait for that call.
        """
        known: dict[bytes, Entry] = {}
        failed_waits = 0
        while missing:
            others: dict[bytes, InFlight] = {}
            if failed_waits < MAX_FAILED_WAITS:
                others = self._in_flight(missing)
            own = {key: text for key, text in missing.items() if key not in others}
            if own:
                known |= await self._compute(own)
            failed = False
            for in_flight in dict.fromkeys(others.values()):
                await self._wait(in_flight)
                failed |= in_flight.failed
            failed_waits += failed
            for key, in_flight in others.items():
                if key in in_flight.entries:
                    known[key] = in_flight.entries[key]
            missing = self._unresolved(missing, known)
        return known

    def _in_flight(self, missing: Texts) -> dict[bytes, InFlight]:
        """Returns the calls to a provider to wait for; a local model's batch queue computes equal texts once itself."""
        texts_per_call = self._embedder.card.texts_per_call
        return self._levels.in_flight.find(missing, self._urgency.priority, texts_per_call) if texts_per_call else {}

    def count(self, texts: int, misses: int) -> None:
        """Updates the metrics of a call for which memory did not have `misses` of its texts."""
        computed = self._embedded_rows + self._shared_rows
        for outcome, rows in (("hit", texts - misses), ("joined", misses - computed), ("miss", computed)):
            if rows:
                metrics.cache_rows(self._model, "memory", outcome).inc(rows)

    def _unresolved(self, texts: Texts, known: dict[bytes, Entry]) -> Texts:
        """Returns the texts that have neither an entry nor an error; adds entries that are in memory meanwhile."""
        left = [key for key in texts if key not in known and key not in self.row_errors and key not in self._examined]
        if left:
            known |= {key: entry for key, entry in zip(left, self._levels.memory.find(left), strict=True) if entry}
        return {key: texts[key] for key in left if key not in known}

    async def _compute(self, texts: Texts) -> dict[bytes, Entry]:
        """Returns the entries of texts of which no other request has an in-flight computation."""
        levels = self._levels
        with levels.in_flight.begin(list(texts), self._urgency.priority) as in_flight:
            if levels.shared is not None:
                in_flight.entries.update(await levels.shared.find(list(texts), self._embedder.card, self._model))
                self._shared_rows += len(in_flight.entries)
                texts = {key: text for key, text in texts.items() if key not in in_flight.entries}
            if texts:
                computed = await self._embed(texts, in_flight)
                if levels.shared is not None:
                    levels.shared.put(computed)
                in_flight.entries.update(computed)
            levels.memory.put(in_flight.entries, self._model)
            return in_flight.entries

    async def _embed(self, texts: Texts, in_flight: InFlight) -> dict[bytes, Entry]:
        """Returns the entries that the embedder computed, and records the row errors that it found."""
        embedded = await self._embedder.embed(
            list(texts.values()), *self._options, self._urgency, allow_partial=self._allow_partial
        )
        self._embedded_rows += len(texts)
        keys = list(texts)
        if not embedded.row_errors:
            self.computed.append(embedded)
            return dict(zip(keys, to_entries(embedded), strict=True))
        self.row_errors |= {keys[row]: error for row, error in embedded.row_errors.items()}
        if not self._allow_partial:  # the other rows are undefined
            in_flight.failed = True
            self._examined.update(keys)
            return {}
        self.computed.append(embedded)
        entries = zip(keys, to_entries(embedded), strict=True)
        return {key: entry for key, entry in entries if key not in self.row_errors}

    async def _wait(self, in_flight: InFlight) -> None:
        """Waits for another request's computation, which continues if this wait is cancelled."""
        began_s = self._levels.clock.monotonic_s()
        left_s = None if self._urgency.deadline_s == math.inf else self._urgency.deadline_s - began_s
        try:
            async with asyncio.timeout(left_s):
                await in_flight.wait()
        except TimeoutError:
            message = "the deadline passed while another request computed the same text"
            raise DeadlineExceededError(message) from None
        finally:
            self.waited_s += self._levels.clock.monotonic_s() - began_s


def cache_keys(
    texts: Sequence[str], card: ModelCard, input_type: InputType, truncation: Truncation, *, caller: str = ""
) -> list[bytes]:
    """Returns the key of each text, KEY_BYTES bytes: a digest of the text and of everything that determines its row.

    The key covers the backend in addition to the space: bf16 and f32 share a space, but a server with f32 must not
    return rows of a bf16 server. It covers the input type if the model has prompts for input types. A caller's name is
    the key of the hash function, so that no text of another caller has the same key. Neither text nor name can be
    recovered from a key.
    """
    options = (card.backend, card.space_id, input_type.value if card.has_roles else "", truncation.value)
    owner = blake2b(caller.encode()).digest() if caller else b""
    prefix = blake2b("".join(f"{word}\0" for word in options).encode(), digest_size=KEY_BYTES, key=owner)
    keys = []
    for text in texts:
        digest = prefix.copy()  # takes half the time of a new digest
        digest.update(text.encode())
        keys.append(digest.digest())
    return keys


def to_entries(embedded: Embedded) -> list[Entry]:
    """Returns an entry for each row, without references to the other rows."""
    data, size = embedded.rows.tobytes(), embedded.rows.shape[1] * embedded.rows.itemsize
    n, counts = len(embedded.rows), embedded.token_counts
    tokens: Sequence[int | None] = [None] * n if counts is None else counts.tolist()
    entries = [(data[at * size : (at + 1) * size], tokens[at], False) for at in range(n)]
    for at in embedded.truncated_rows:
        entries[at] = (*entries[at][:2], True)
    return entries


def join_entries(
    entries: Sequence[Entry], computed: Sequence[Embedded], dimensions: int, *, waited_s: float
) -> Embedded:
    """Returns the rows of `entries`, float32 [n, dimensions], some of which were `computed` for this call.

    If token counts are known, a cached row counts its tokens as when it was computed; of a provider's tokens, only
    those that were billed for this call count.
    """
    rows = np.frombuffer(b"".join([row for row, _, _ in entries]), np.float32).reshape(len(entries), dimensions)
    tokens = [count for _, count, _ in entries if count is not None]
    known = len(tokens) == len(entries)
    return Embedded(
        rows=rows,
        token_counts=np.array(tokens, np.int64) if known else None,
        truncated_rows=tuple([row for row, (_, _, truncated) in enumerate(entries) if truncated]),
        total_tokens=sum(tokens) if known else sum(part.total_tokens for part in computed),
        cached_rows=len(entries) - sum(len(part.rows) - len(part.row_errors) for part in computed),
        tokenization_s=sum(part.tokenization_s for part in computed),
        queue_s=waited_s + sum(part.queue_s for part in computed),
        inference_s=sum(part.inference_s for part in computed),
    )
