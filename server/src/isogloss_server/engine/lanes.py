"""Whose turn it is: of a model's BULK jobs no more work at once than it says, so that they hold up nobody else."""

import asyncio
from types import TracebackType

from isogloss_server.clock import Clock
from isogloss_server.engine.job import EmbedJob, SimilarityJob
from isogloss_server.engine.registry import ServedModel
from isogloss_server.errors import TimeUpError
from isogloss_server.models.base import Priority

QUEUED_BULK_JOBS = 256  # of a model with a queue of its own: enough to fill it, and a bound on what they hold in memory


class Turn:
    """What a job works inside of; its texts count as the model's queued ones until it leaves.

    `async with` waits for the turn, gives the seconds that it waited, and ends it.
    """

    __slots__ = ("_clock", "_job", "_lane", "_model")

    def __init__(self, clock: Clock, model: ServedModel, job: EmbedJob | SimilarityJob) -> None:
        self._clock = clock
        self._lane = model.bulk_turns if job.priority is Priority.BULK else None
        self._model = model
        self._job = job

    async def __aenter__(self) -> float:
        """Returns the seconds waited.

        Raises:
            TimeUpError: the job's deadline has passed.
        """
        asked_s = self._clock.monotonic_s()
        self._model.queued_texts += self._job.text_count
        if self._lane is not None:
            try:
                await self._lane.acquire()
            except asyncio.CancelledError:
                self._model.queued_texts -= self._job.text_count
                raise
        began_s = self._clock.monotonic_s()
        if began_s >= self._job.deadline_s:
            self._leave()
            raise TimeUpError("the deadline had passed before work began")
        return began_s - asked_s

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._model.queued_texts -= self._job.text_count
        if self._lane is not None:
            self._lane.release()
