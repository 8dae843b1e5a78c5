"""Bytes for hypothesis: random ones, and good messages that were changed."""

from hypothesis import strategies as st

from tests.fuzz.seeds import Method, odd

Edit = tuple[str, int, bytes]
EDITS = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "double", "cut"]), st.integers(0, 400), st.binary(max_size=8)
)


def edited(message: bytes, edits: list[Edit]) -> bytes:
    """Returns bytes after some changes, each somewhere."""
    for kind, place, part in edits:
        at = place % (len(message) + 1)
        match kind:
            case "insert":
                message = message[:at] + part + message[at:]
            case "replace":
                message = message[:at] + part + message[at + len(part) :]
            case "delete":
                message = message[:at] + message[at + max(1, len(part)) :]
            case "double":
                message = message[:at] + message[: 2 * at]
            case "cut":
                message = message[:at]
    return message


def requests(method: Method) -> st.SearchStrategy[bytes]:
    """Requests of a method, hardly any of which is a good one."""
    seeds = st.sampled_from([seed.SerializeToString() for seed in method.seeds])
    changed = st.builds(edited, seeds, st.lists(EDITS, min_size=1, max_size=4))
    return st.one_of(changed, st.binary(max_size=200), st.sampled_from(odd(method)))
