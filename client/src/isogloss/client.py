"""The blocking client."""

from collections.abc import Generator, Iterable

from isogloss import _arguments as given
from isogloss import _plans
from isogloss._blocking import BlockingClient
from isogloss.results import EmbeddedChunk, Embeddings, HealthReport, ModelInfo, Neighbors, PairScores, Scores


class Client(BlockingClient):
    """Embeds and compares texts on an Isogloss server. Any number of threads may share one.

    Every call has a deadline, is tried again where that may help, and is split where it is larger than the server's
    limits. Nothing is sent before the first call. Make a client after forking, not before.

    Every call raises one of the errors that isogloss.errors draws, such as InvalidArgumentError where an argument is
    wrong, UnavailableError where no server answers, and DeadlineExceededError when the time is up.

    Args:
        target: Where the server listens, such as "localhost:50051"; goes before the options' target.
        options: All else about the connection.
    """

    def embed(
        self,
        texts: given.GivenTexts,
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        priority: str = "interactive",
        allow_partial: bool = False,
        space_id: str = "",
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Returns one vector for each text, in order.

        Args:
            texts: Any number of them, each with a character that is not white space.
            model: A ModelInfo.name; empty = the server's default.
            input_type: An InputType: what the texts are for.
            dimensions: How many numbers a vector has; 0 = the model's own, else one of ModelInfo.dimensions.
            element_type: An ElementType: how vectors cross the wire. The result's `vectors` are float32 anyway.
            truncation: A Truncation: what becomes of a text longer than the model reads; None = "end", or "error" for a
                model that does not offer "end".
            normalize: Whether to bring vectors to unit length.
            priority: A Priority: "bulk" for work that nobody waits for.
            allow_partial: Whether a text that fails becomes zeros and an entry of row_errors, not the call's error.
            space_id: Where not empty, the space that the vectors must lie in, such as that of an index.
            timeout_s: Seconds that the whole call may take; None = the options' timeout_s.

        Raises:
            SpaceMismatchError: The model's space is not `space_id`, or changed during the call.
        """
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority=priority,
            allow_partial=allow_partial,
            space_id=space_id,
        )
        side = given.texts("texts", texts, arguments.input_type)
        return self._run(_plans.embed(self._known, arguments, side), timeout_s)

    def embed_many(
        self,
        texts: Iterable[str],
        *,
        model: str = "",
        input_type: str = "similarity",
        dimensions: int = 0,
        element_type: str = "float32",
        truncation: str | None = None,
        normalize: bool = True,
        allow_partial: bool = False,
        space_id: str = "",
        chunk_texts: int = 256,
        window_chunks: int = 8,
        patience_s: float = 60.0,
    ) -> Generator[EmbeddedChunk, None, None]:
        """Yields the vectors of any number of texts, in order and chunk by chunk, in the lane of bulk work.

        `texts` may come from any source, such as a file, and are read as they are needed: no more than `window_chunks`
        chunks ahead of the one that was yielded last, of at most `chunk_texts` texts each and within the server's
        limits. Where the source raises, that comes after the vectors of what it gave. All other arguments are as of
        `embed`.

        The work outlives lost connections and restarted servers, up to `patience_s` seconds of waiting without any
        answer; a chunk has half of them. It never changes space: give `space_id` when you resume it.

        Raises:
            SpaceMismatchError: The server's space is not `space_id`, or not that of the first chunk.
            IsoglossError: As of `embed`, after the chunks before the one at fault; rows are those of the whole.
        """
        arguments = given.embed_arguments(
            model=model,
            input_type=input_type,
            dimensions=dimensions,
            element_type=element_type,
            truncation=truncation,
            normalize=normalize,
            priority="bulk",
            allow_partial=allow_partial,
            space_id=space_id,
        )
        bulk = given.bulk_arguments(chunk_texts=chunk_texts, window_chunks=window_chunks, patience_s=patience_s)
        return self._run_many(arguments, bulk, texts)

    def similarity(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide | None = None,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Scores:
        """Returns the score of every query against every candidate, float32 [q, c].

        A side is a list of texts, which are embedded to unit length, or the Embeddings of an earlier call, or Vectors
        that the caller kept, which are taken as they are.

        Args:
            queries: One side.
            candidates: The other side; None compares the queries with themselves.
            model: A ModelInfo.name; empty = the server's default.
            metric: A Metric; greater is nearer for all of them.
            dimensions: How many numbers to compare of texts; 0 = as many as the other side's vectors have.
            query_type: An InputType: what the queries are for, where they are texts.
            candidate_type: An InputType: what the candidates are for, where they are texts.
            truncation: A Truncation: what becomes of a text longer than the model reads; None = "end", or "error" for a
                model that does not offer "end".
            priority: A Priority: "bulk" for work that nobody waits for.
            timeout_s: Seconds that the whole call may take; None = the options' timeout_s.

        Raises:
            SpaceMismatchError: The sides lie in two spaces (found before anything is sent), or not in the model's.
        """
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.sides(queries, candidates, query_type, candidate_type)
        return self._run(_plans.similarity(self._known, arguments, sides), timeout_s)

    def pairwise(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "similarity",
        candidate_type: str = "similarity",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> PairScores:
        """Returns the score of query i against candidate i, float32 [n]. Both sides have as many rows.

        All arguments are as of `similarity`.
        """
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_plans.pairwise(self._known, arguments, sides), timeout_s)

    def nearest(
        self,
        query: str,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> Neighbors:
        """Returns the candidates nearest to one query, best first, ties by lower row.

        At most `k`, and none that scores below `min_score`. All other arguments are as of `similarity`.
        """
        return self.nearest_many(
            [given.string("query", query)],
            candidates,
            k=k,
            min_score=min_score,
            model=model,
            metric=metric,
            dimensions=dimensions,
            query_type=query_type,
            candidate_type=candidate_type,
            truncation=truncation,
            priority=priority,
            timeout_s=timeout_s,
        )[0]

    def nearest_many(
        self,
        queries: given.GivenSide,
        candidates: given.GivenSide,
        *,
        k: int = 10,
        min_score: float | None = None,
        model: str = "",
        metric: str = "cosine",
        dimensions: int = 0,
        query_type: str = "query",
        candidate_type: str = "document",
        truncation: str | None = None,
        priority: str = "interactive",
        timeout_s: float | None = None,
    ) -> list[Neighbors]:
        """Returns what `nearest` does, for each query; all other arguments are as of `similarity`."""
        shape = given.nearest_shape(k, min_score)
        arguments = given.compare_arguments(
            model=model, metric=metric, dimensions=dimensions, truncation=truncation, priority=priority
        )
        sides = given.both_sides(queries, candidates, query_type, candidate_type)
        return self._run(_plans.nearest(self._known, arguments, shape, sides), timeout_s)

    def health(self, model: str = "", *, timeout_s: float | None = None) -> HealthReport:
        """Returns whether the server, or `model` alone, can serve now, and how loaded it is."""
        return self._run(_plans.health(given.string("model", model)), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[ModelInfo]:
        """Returns the models that the server offers, the default first."""
        return self._run(_plans.models(), timeout_s)
