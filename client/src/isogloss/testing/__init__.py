"""A fake Isogloss server for the tests of programs that call one: in this process, without a model, at once.

It is a real gRPC server on a free port of this machine, so that a program under test is tested whole: its own client,
its connection, its retries. Answers are those of the contract, errors with all their details included. Vectors are
made of the text alone and are the same bit for bit in every process and on every machine: equal texts have equal
vectors, texts that the test lists as translations of each other lie near (their cosine is at least 0.9), and all
others lie far apart (their cosine is 0 on average, and within 0.4 of it at 256 dimensions, but for a pair in billions).

    import pytest
    from isogloss import Client, SpaceMismatchError
    from isogloss.testing import FakeServer

    def test_a_lookup_crosses_languages() -> None:
        with FakeServer(translations=[("Good morning", "おはよう")], max_texts=2) as server:
            with Client(server.target) as client:
                # What the program under test does:
                stored = client.embed(["Guten Abend", "おはよう", "Il pleut."])
                [best] = client.nearest_many(["Good morning"], stored, k=1)[0]
                assert best.row == 1

                # What it asked for: three texts, where the server takes two at a time.
                assert [r.texts for r in server.requests if r.method == "Embed"] == [
                    ("Guten Abend", "おはよう"),
                    ("Il pleut.",),
                ]

                # Two refusals, which the client outlives by trying again.
                server.fail_next("Embed", code="UNAVAILABLE", reason="OVERLOADED", retry_after_s=0.01, times=2)
                client.embed(["still here"])

                # The server now has another model: what was stored belongs to the old one's space.
                server.space_id = "another-space"
                with pytest.raises(SpaceMismatchError):
                    client.nearest_many(["Good morning"], stored)

With pytest, the fixtures `isogloss_server` (a FakeServer of default settings for each test) and `isogloss_client` (a
Client on it) are there as soon as this package is installed:

    def test_umbrellas_are_found_in_german(isogloss_server, isogloss_client) -> None:
        isogloss_server.add_translations("umbrella", "Regenschirm")
        assert isogloss_client.nearest("Regenschirm", ["raincoat", "umbrella"], k=1)[0].text == "umbrella"

Calls can also be held (`with server.hold("Embed") as gate:`), connections dropped (`server.drop_connections()`), and
the server stopped and started again on its port (`server.stop()`, `server.start()`).
"""

from isogloss.testing._script import Gate, Received
from isogloss.testing._server import FakeServer

__all__ = ["FakeServer", "Gate", "Received"]
