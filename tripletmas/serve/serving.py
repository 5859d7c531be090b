"""The work behind the application: a bounded number of questions at once, read, embedded together, searched.

All state lives in the event loop; what takes time runs in threads, so that others are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from tripletmas.serve.batches import Batches, finite
from tripletmas.serve.edition import Edition, Editions
from tripletmas.serve.encoder import Sample
from tripletmas.serve.gallery import Facts, Gallery, Item, Neighbour, Refusal, Wanted
from tripletmas.serve.questions import Question
from tripletmas.serve.thumbnails import Thumbnails

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        upload_bytes: of the body of a request.
        seconds: from the first byte of a request's body to its answer.
        queue: questions (images, texts, ids) that are read, waited for or answered at once; more are told to come
            again. As many thumbnails again.
        together: samples of several callers that are embedded at once; None: as many as `Encoder.together` finds best.
        look_every: seconds between two looks at whether the gallery has changed.
    """

    upload_bytes: int = 20 * 2**20
    seconds: float = 30.0
    queue: int = 64
    together: int | None = None
    look_every: float = 2.0

    def __post_init__(self):
        for name in ("upload_bytes", "seconds", "queue", "together", "look_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")


@dataclass(frozen=True)
class Answer:
    """What was found for a question; `item` is what it names, where it names one."""

    question: Question
    neighbours: Sequence[Neighbour]
    item: Item | None = None


class Serving:
    """Answers questions by the present edition of a gallery; used in one event loop."""

    def __init__(self, editions: Editions, limits: Limits):
        self.editions, self.limits = editions, limits
        self._thumbnails = Thumbnails()
        self._taken = {"questions": 0, "thumbnails": 0}
        self._threads: ThreadPoolExecutor | None = None
        self._embedding: ThreadPoolExecutor | None = None
        self._batches: tuple[Edition, Batches] | None = None

    async def watch(self) -> None:
        """Look, again and again, whether the gallery has changed, and serve the new one."""
        while True:
            await asyncio.sleep(self.limits.look_every)
            await self._in_thread(self.editions.renew)

    def stop(self) -> None:
        """Drop what waits, and let the threads end."""
        for threads in filter(None, (self._threads, self._embedding)):
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads = self._embedding = self._batches = None

    @contextmanager
    def room(self, what: str = "questions") -> Iterator[Callable[[int], None]]:
        """Inside, the function that it gives takes places for so many more of what is asked.

        Raises:
            Refusal: of that function, where there are not as many left.
        """
        own = 0

        def take(count: int) -> None:
            nonlocal own
            if self._taken[what] + count > max(self.limits.queue, own + count if self._taken[what] == own else 0):
                raise Refusal(
                    503, "too many others are asking at this moment: come again shortly", headers={"retry-after": "1"}
                )
            self._taken[what] += count
            own += count

        try:
            yield take
        finally:
            self._taken[what] -= own

    async def facts(self) -> Facts:
        """What is told of the gallery now."""
        return await self._of_gallery(self.editions.now.gallery.facts)

    async def answers(self, edition: Edition, questions: Sequence[Question], wanted: Wanted) -> list[Answer]:
        """The neighbours of each of the questions; what an id names is not among its own.

        Raises:
            Refusal: naming what cannot be read or is not there; if the gallery holds texts and images come, or the
                other way round.
        """
        items, known = await self._of_gallery(_looked_up, edition.gallery, questions)
        vectors = await self._vectors(edition, questions, items, known)
        one_more = replace(wanted, k=wanted.k + any(item is not None for item in items))
        near = await self._of_gallery(edition.gallery.search, vectors, one_more)
        return [
            Answer(question, [each for each in own if item is None or each.item.id != item.id][: wanted.k], item)
            for question, item, own in zip(questions, items, near, strict=True)
        ]

    async def _vectors(
        self,
        edition: Edition,
        questions: Sequence[Question],
        items: Sequence[Item | None],
        known: Sequence[Tensor | None],
    ) -> Tensor:
        """(q, dim) of the questions: those that are known, and the others embedded."""
        samples = await asyncio.gather(
            *(
                self._sample(edition, question, item)
                for question, item, vector in zip(questions, items, known, strict=True)
                if vector is None
            )
        )
        found = iter(await self._embedded(edition, list(samples)) if samples else ())
        vectors = torch.stack([next(found) if vector is None else vector for vector in known])
        for question, is_finite in zip(questions, finite(vectors), strict=True):
            if not is_finite:
                raise Refusal(422, f"the model gives no finite embedding of {question.name}")
        return vectors

    async def thumbnail(self, edition: Edition, id: str, known: str | None) -> tuple[str, bytes | None]:
        """(its tag, its picture) of what has an id in the gallery; None where `known` is that tag.

        Raises:
            Refusal: where nothing has it, or it has no picture.
        """
        with self.room("thumbnails") as take:
            take(1)
            item = await self._of_gallery(edition.gallery.item, id)
            if item.path is None or edition.encoder.of_texts:
                raise Refusal(404, "what has this id has no picture")
            tag = await self._in_thread(self._thumbnails.tag, item.path)
            if tag == known:
                return tag, None
            return tag, await self._in_thread(self._thumbnails.picture, item.path, tag)

    async def _sample(self, edition: Edition, question: Question, item: Item | None) -> Sample:
        """What a question asks with, as the model is shown it."""
        encoder, text = edition.encoder, item.text if item else question.text
        if encoder.of_texts:
            if text is None:
                raise Refusal(422, "the gallery holds texts, which only texts and ids ask for, not images")
            return text
        if question.text is not None:
            raise Refusal(422, "the gallery holds images, which only images and ids ask for, not texts")
        try:
            if question.content is not None:
                return await self._in_thread(encoder.read, question.content)
            if item is None or item.path is None:
                raise Refusal(404, f"{question.name} has no file to be embedded anew")
            return await self._in_thread(encoder.read_file, item.path)
        except ValueError as error:
            reason = "its file cannot be read" if question.content is None else f"cannot be read: {error}"
            raise Refusal(422, f"{question.name} {reason}") from None

    async def _embedded(self, edition: Edition, samples: Sequence[Sample]) -> Tensor:
        if self._batches is None or self._batches[0] is not edition:
            if self._embedding is None:
                self._embedding = ThreadPoolExecutor(1, thread_name_prefix="embedding")
            most = self.limits.together or edition.encoder.together
            batches = Batches(edition.encoder.embed, self._embedding, most=most)
            self._batches = edition, batches
        return await self._batches[1].embed(samples)

    async def _of_gallery(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """What a function of the gallery gives, in a thread; a Refusal where an engine fails."""
        try:
            return await self._in_thread(function, *arguments)
        except (ValueError, OSError) as error:
            logger.warning("the gallery cannot be asked: %s", " ".join(str(error).split()))
            raise Refusal(503, "the gallery cannot be asked at this moment; the log of the server says why") from None

    async def _in_thread(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2), thread_name_prefix="serving")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _looked_up(gallery: Gallery, questions: Sequence[Question]) -> tuple[list[Item | None], list[Tensor | None]]:
    """What the ids among the questions name, and the vectors of these; None for other questions."""
    items = [None if each.id is None else gallery.item(str(each.id)) for each in questions]
    return items, [item and gallery.vector(item) for item in items]
