"""Rows in this process's memory, bounded in bytes: those that were used last, of all models together."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from isogloss_server import metrics
from isogloss_server.engine.cache.entries import Entry

ENTRY_BYTES = 400  # what key, tuple, count and table take beside a row's own bytes; measured: 350, more while it grows


class Memory:
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
