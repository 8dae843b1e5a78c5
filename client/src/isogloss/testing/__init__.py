"""A fake Isogloss server for the tests of programs that use one: in the test's process, without a model, fast.

It is a real gRPC server on a free port of this machine, so a test covers the whole program with its client, connection
and retries. Responses follow the contract, including the details of errors. Vectors depend on the text only and are
equal bit for bit in every process and on every machine. Equal texts have equal vectors. Texts that the test lists as
translations of each other are close: their cosine is at least 0.9. Other texts are far apart: their cosine is 0 on
average and, with 256 dimensions, within 0.4 of it for all but one pair in billions.

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

                # Its requests: three texts, of which the server accepts two at a time.
                assert [r.texts for r in server.requests if r.method == "Embed"] == [
                    ("Guten Abend", "おはよう"),
                    ("Il pleut.",),
                ]

                # Two errors, after which the retries of the client succeed.
                server.fail_next("Embed", code="UNAVAILABLE", reason="OVERLOADED", retry_after_s=0.01, times=2)
                client.embed(["still here"])

                # The server now has another model, and the stored vectors are of another space.
                server.space_id = "another-space"
                with pytest.raises(SpaceMismatchError):
                    client.nearest_many(["Good morning"], stored)

With pytest, the fixtures `isogloss_server` (a FakeServer with default settings for each test) and `isogloss_client` (a
Client connected to it) are available once this package is installed:

    def test_umbrellas_are_found_in_german(isogloss_server, isogloss_client) -> None:
        isogloss_server.add_translations("umbrella", "Regenschirm")
        assert isogloss_client.nearest("Regenschirm", ["raincoat", "umbrella"], k=1)[0].text == "umbrella"

A test can also hold calls (`with server.hold("Embed") as gate:`), drop connections (`server.drop_connections()`), stop
and restart the server on its port (`server.stop()`, `server.start()`), and run a function at each request
(`server.on_request = ...`).
"""

from isogloss.testing._script import Gate, Received
from isogloss.testing._server import FakeServer

__all__ = ["FakeServer", "Gate", "Received"]
