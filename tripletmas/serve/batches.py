"""Samples of several callers embedded together: what comes while one batch is embedded is the next.

Nobody waits for others to come: a caller alone is served at once, and many share the cost of a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from torch import Tensor

from tripletmas.serve.encoder import Sample


@dataclass(eq=False)
class _Job:
    samples: Sequence[Sample]
    found: asyncio.Future[Tensor]


class Batches:
    """Hands samples to a function that embeds, in a thread of its own; used in one event loop.

    Args:
        embed: samples -> vectors (n, dim).
        thread: of a single worker: what it embeds is embedded by no other.
        most: samples that are embedded together; a caller who brings more has them embedded alone. 1: none are.
    """

    def __init__(self, embed: Callable[[Sequence[Sample]], Tensor], thread: Executor, *, most: int = 32):
        self._embed, self._thread, self._most = embed, thread, most
        self._waiting: deque[_Job] = deque()
        self._working: asyncio.Task[None] | None = None

    async def embed(self, samples: Sequence[Sample]) -> Tensor:
        """The vectors (n, dim) of these samples; errors as the function. One that is cancelled is not embedded."""
        loop = asyncio.get_running_loop()
        job = _Job(samples, loop.create_future())
        self._waiting.append(job)
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await job.found

    async def _work(self) -> None:
        while jobs := self._next():
            try:
                vectors = await self._embedded([sample for job in jobs for sample in job.samples])
            except Exception as error:
                await self._alone(jobs, error)
                continue
            for job, own in zip(jobs, vectors.split([len(job.samples) for job in jobs]), strict=True):
                _settle(job, own)

    async def _alone(self, jobs: Sequence[_Job], error: Exception) -> None:
        """Each by itself, since what one brought has failed them together."""
        for job in jobs:
            try:
                _settle(job, error if len(jobs) == 1 else await self._embedded(job.samples))
            except Exception as own:
                _settle(job, own)

    async def _embedded(self, samples: Sequence[Sample]) -> Tensor:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, samples)

    def _next(self) -> list[_Job]:
        """The jobs of the next batch, in the order in which they came, those left out whose callers have gone."""
        jobs: list[_Job] = []
        size = 0
        while self._waiting and (not jobs or size + len(self._waiting[0].samples) <= self._most):
            job = self._waiting.popleft()
            if not job.found.done():
                jobs.append(job)
                size += len(job.samples)
        return jobs


def _settle(job: _Job, result: Tensor | Exception) -> None:
    if job.found.done():  # cancelled
        return
    if isinstance(result, Exception):
        job.found.set_exception(result)
    else:
        job.found.set_result(result)


def finite(vectors: Tensor) -> list[bool]:
    """Which rows hold neither nan nor infinity."""
    return torch.isfinite(vectors).all(dim=1).tolist()
