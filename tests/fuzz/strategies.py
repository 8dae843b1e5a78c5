"""Hypothesis strategies for requests: random bytes, altered messages, and unusual ones."""

from hypothesis import strategies as st

from tests.fuzz.seeds import Method, unusual

Edit = tuple[str, int, bytes]
EDITS = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "double", "cut"]), st.integers(0, 400), st.binary(max_size=8)
)


def edit(message: bytes, edits: list[Edit]) -> bytes:
    """Returns a message after edits, each at its position."""
    for kind, position, part in edits:
        at = position % (len(message) + 1)
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
    """Returns a strategy for requests of a method, of which few are valid."""
    seeds = st.sampled_from([seed.SerializeToString() for seed in method.seeds])
    altered = st.builds(edit, seeds, st.lists(EDITS, min_size=1, max_size=4))
    return st.one_of(altered, st.binary(max_size=200), st.sampled_from(unusual(method)))
