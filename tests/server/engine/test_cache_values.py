"""How a row travels to other servers: it comes back bit for bit, or not at all."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from isogloss_server.engine.shared_cache import Entry, decode_entry, encode_entry

WIDTH = 16
KEY = bytes(range(32))

entries = st.builds(
    lambda row, tokens, cut: (np.array(row, "<f4").tobytes(), tokens, cut),
    st.lists(st.floats(width=32), min_size=WIDTH, max_size=WIDTH),
    st.none() | st.integers(0, 2**31 - 1),
    st.booleans(),
)


@given(entries)
def test_a_value_is_its_entry(entry: Entry) -> None:
    """Whatever the row, its tokens and its cut, they come back bit for bit."""
    assert decode_entry(KEY, encode_entry(KEY, entry), WIDTH) == entry


@given(entries, st.data())
def test_a_value_that_was_changed_is_none(entry: Entry, data: st.DataObject) -> None:
    """A byte that differs, a value cut short or made longer, another key or width: it is ignored."""
    value = encode_entry(KEY, entry)
    at, bits = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(1, 255))
    changed = value[:at] + bytes([value[at] ^ bits]) + value[at + 1 :]
    for broken in (changed, value[:at], value + b"\0"):
        assert decode_entry(KEY, broken, WIDTH) is None
    assert decode_entry(KEY[::-1], value, WIDTH) is None
    assert decode_entry(KEY, value, WIDTH + 1) is None


@given(st.binary(max_size=2 * WIDTH * 4))
def test_garbage_is_none(value: bytes) -> None:
    """Whatever bytes stand there, they are ignored without an error."""
    assert decode_entry(KEY, value, WIDTH) is None
