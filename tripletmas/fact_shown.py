"""What a report shows of facts, kept in the run directory: what each fact finds, after each task.

facts/facts.json              the facts, by column, and what chance is
facts/found00.safetensors     after task 0, for every fact: average precision, and its five best images of all tasks
facts/pictures.safetensors    of the last task: the five best of some facts, when learned and now, with pictures
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from tripletmas.checkpoint import RunDirectory, without_nan
from tripletmas.data import LabelledDataset
from tripletmas.evaluation import EmbeddedTasks
from tripletmas.fact_evaluation import images_once
from tripletmas.facts.losses import FactLoss
from tripletmas.facts.metrics import chance_map
from tripletmas.facts.scoring import fact_vectors, image_vectors, score_facts
from tripletmas.index import ExactIndex
from tripletmas.params import Params
from tripletmas.shown import small
from tripletmas.tasks import Stream

_NEAREST = 5
_FORGOTTEN, _DRAWN = 12, 8  # facts with pictures: those that lost most, and some drawn at random


def write_fact_shown(run: RunDirectory, number: int, seen: Stream, embedded: EmbeddedTasks, loss: FactLoss) -> None:
    """Keep what a report shows after task `number`, the last of those seen."""
    images = images_once(seen)
    vectors = torch.cat([part.vectors for part in embedded.galleries])[images.first]
    truth = torch.cat([task.query.truth for task in seen])[images.first]
    indices = torch.cat([task.query.indices for task in seen])[images.first]
    found = _found(loss, vectors, truth, seen)
    found |= {"item": indices[found["item"]]}
    run.write_tensors(_file(number), found)
    if number == 0 or not (run.path / "facts" / "facts.json").exists():
        names = {"facts": list(seen[0].query.class_names), "words": loss.language.words}
        run.write_json("facts/facts.json", names)
    run.write_json(
        "facts/chance.json", without_nan({"after": number, "average_precision": chance_of(truth, seen).tolist()})
    )
    if len(seen[0].query.sample_shape) == 3 and seen[0].query.sample_shape[0] in (1, 3):
        learned = [run.read_tensors(_file(task)) if task < number else found for task in range(number + 1)]
        run.write_tensors("facts/pictures.safetensors", _pictured(seen, learned))


def chance_of(truth: Tensor, seen: Stream) -> Tensor:
    """(f,) the expected average precision of a random order of these images (n, f); nan for facts that none shows."""
    asked = torch.zeros(truth.shape[1], dtype=torch.bool)
    asked[[label for task in seen for label in task.classes]] = True
    return chance_map(truth).masked_fill(~asked, torch.nan)


def _found(loss: FactLoss, vectors: Tensor, truth: Tensor, seen: Stream) -> Params:
    """ "average_precision" (f,), nan for what is not asked for; "item", "score", "right" (f, 5) of the best images."""
    language = loss.language
    asked = torch.zeros(len(language.facts), dtype=torch.bool)
    asked[[label for task in seen for label in task.classes]] = True
    scores = score_facts(vectors, truth, language.vectors, language.mask, asked=asked, candidates=asked)
    index = ExactIndex.over(image_vectors(vectors).contiguous(), normalize=False)
    best, items = index.search(fact_vectors(language.vectors, language.mask), min(_NEAREST, len(vectors)))
    right = truth[items, torch.arange(len(items))[:, None]]
    return {"average_precision": scores.per_fact["map"].float(), "item": items, "score": best, "right": right}


def _pictured(seen: Stream, found: list[Params]) -> Params:
    """What a page shows: facts, their best images when learned and now, and a picture of each image, once."""
    now, task_of = found[-1], torch.full_like(found[-1]["item"][:, 0], -1)
    for number, task in enumerate(seen):
        task_of[list(task.classes)] = number
    asked = (~now["average_precision"].isnan()).nonzero().flatten()
    learned = torch.stack([found[int(task_of[fact])]["average_precision"][fact] for fact in asked])
    lost = learned - now["average_precision"][asked]
    forgotten = lost.argsort(descending=True)[: min(_FORGOTTEN, int((lost > 0).sum()))]
    generator = torch.Generator().manual_seed(zlib.crc32(b"shown facts"))
    drawn = torch.randperm(len(asked), generator=generator)
    drawn = drawn[~torch.isin(drawn, forgotten)][:_DRAWN]
    facts = asked[torch.cat([forgotten, drawn])]
    place: dict[int, int] = {}
    samples = _Samples(seen)

    def pictures(items: Tensor) -> Tensor:
        return torch.tensor([[place.setdefault(item, len(place)) for item in row] for row in items.tolist()])

    content: Params = {"fact": facts, "task": task_of[facts], "drawn": torch.arange(len(facts)) >= len(forgotten)}
    for when, of in (("learned", [found[int(task_of[fact])] for fact in facts]), ("now", [now] * len(facts))):
        for key in ("score", "right"):
            content[f"{when}_{key}"] = torch.stack([each[key][fact] for each, fact in zip(of, facts, strict=True)])
        items = torch.stack([each["item"][fact] for each, fact in zip(of, facts, strict=True)])
        content[f"{when}_picture"] = pictures(items)
    return content | {"pictures": torch.stack([small(samples[item]) for item in place])}


class _Samples:
    """The test images of a stream by their index in the data set."""

    def __init__(self, seen: Stream):
        self._of: dict[int, tuple[LabelledDataset, int]] = {}
        for task in seen:
            for position, index in enumerate(task.query.indices.tolist()):
                self._of.setdefault(index, (task.query, position))

    def __getitem__(self, index: int) -> Tensor:
        data, position = self._of[index]
        return data[position][0]


def _file(number: int) -> str:
    return f"facts/found{number:02d}.safetensors"
