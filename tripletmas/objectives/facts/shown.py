"""What a report shows of facts, kept in the run directory: what each fact finds, after each task.

facts/found00.json            after task 0, by fact: average precision, that of a random order, and its five best images
facts/pictures.safetensors    of the last task: the five best of some facts, when learned and now, with pictures

Facts and images are kept by their names, so that data which grow do not change what was said of them.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor

from tripletmas.basics.weights import Params
from tripletmas.data.dataset import LabelledDataset, concatenate
from tripletmas.data.tasks import Stream
from tripletmas.index.exact import ExactIndex
from tripletmas.objectives.embedded import EmbeddedTasks
from tripletmas.objectives.facts.losses import FactLoss
from tripletmas.objectives.facts.objective import images_once
from tripletmas.objectives.facts.scoring import fact_vectors, image_vectors, score_facts
from tripletmas.objectives.metrics import chance_map
from tripletmas.objectives.retrieval.shown import small
from tripletmas.runs.directory import RunDirectory

_NEAREST = 5
_FORGOTTEN, _DRAWN = 12, 8  # facts with pictures: those that lost most, and some drawn at random

Found = dict[str, dict[str, Any]]  # fact -> average_precision, chance, and of its best images names, scores, shows


def write_fact_shown(run: RunDirectory, number: int, seen: Stream, embedded: EmbeddedTasks, loss: FactLoss) -> None:
    """Keep what a report shows after task `number`, the last of those seen."""
    images = concatenate([task.query for task in seen])
    vectors = torch.cat([part.vectors for part in embedded.galleries])[images_once(seen)]
    found = _found(loss, vectors, images, seen)
    run.write_json(found_file(number), {"words": loss.language.words, "facts": found})
    if len(images.sample_shape) == 3 and images.sample_shape[0] in (1, 3):
        learned = [found if task == number else read_found(run, task) for task in range(number + 1)]
        run.write_tensors("facts/pictures.safetensors", _pictured(seen, images, learned))


def found_file(number: int) -> str:
    """Where a run directory keeps what facts find after task `number`."""
    return f"facts/found{number:02d}.json"


def read_found(run: RunDirectory, number: int) -> Found:
    """What facts found after task `number`; nothing, where that was not kept."""
    return (run.read_json(found_file(number)) or {}).get("facts", {})


def names_of(images: LabelledDataset) -> tuple[str, ...]:
    """The file of each image, or its number where it has none."""
    return images.paths or tuple(f"test image {index}" for index in images.indices.tolist())


def _found(loss: FactLoss, vectors: Tensor, images: LabelledDataset, seen: Stream) -> Found:
    language, truth = loss.language, images.truth
    asked = torch.zeros(len(language.facts), dtype=torch.bool)
    asked[[label for task in seen for label in task.classes]] = True
    none = torch.zeros(len(vectors), dtype=torch.bool)  # only facts ask
    precision = score_facts(vectors, truth, language.vectors, language.mask, asked=asked, of_images=none)
    index = ExactIndex.over(image_vectors(vectors).contiguous(), normalize=False)
    columns = asked.nonzero().flatten()
    scores, items = index.search(
        fact_vectors(language.vectors[columns], language.mask[columns]), min(_NEAREST, len(vectors))
    )
    names, chance = names_of(images), chance_map(truth)
    return {
        images.class_names[column]: {
            "average_precision": float(precision.per_fact["map"][column]),
            "chance": float(chance[column]),
            "images": [names[item] for item in own],
            "scores": of_own,
            "shows": truth[own, column].tolist(),
        }
        for column, own, of_own in zip(columns.tolist(), items.tolist(), scores.tolist(), strict=True)
    }


def _pictured(seen: Stream, images: LabelledDataset, found: list[Found]) -> Params:
    """What a page shows: facts, their best images when learned and now, and a picture of each image, once."""
    now, names = found[-1], images.class_names
    task_of = {names[label]: number for number, task in enumerate(seen) for label in task.classes}
    both = [name for name in now if _precision(now, name) is not None]
    both = [name for name in both if _precision(found[task_of[name]], name) is not None]
    lost = {name: _precision(found[task_of[name]], name) - _precision(now, name) for name in both}
    forgotten = [name for name in sorted(both, key=lambda name: -lost[name]) if lost[name] > 0][:_FORGOTTEN]
    others = [name for name in both if name not in forgotten]
    generator = torch.Generator().manual_seed(zlib.crc32(b"shown facts"))
    drawn = [others[i] for i in torch.randperm(len(others), generator=generator).tolist()[:_DRAWN]]
    place: dict[int, int] = {}
    position = {name: number for number, name in enumerate(names_of(images))}
    chosen, column = [*forgotten, *drawn], {name: number for number, name in enumerate(names)}

    def rows(of: list[dict[str, Any]], when: str) -> Params:
        """Five columns; where there are fewer images, or one is no longer there, its picture is -1."""
        pictures = torch.full((len(of), _NEAREST), -1)
        scores, shows = torch.zeros(len(of), _NEAREST), torch.zeros(len(of), _NEAREST, dtype=torch.bool)
        for row, each in enumerate(of):
            for rank, name in enumerate(each["images"]):
                if name in position:
                    pictures[row, rank] = place.setdefault(position[name], len(place))
                    scores[row, rank], shows[row, rank] = each["scores"][rank], each["shows"][rank]
        return {f"{when}_picture": pictures, f"{when}_score": scores, f"{when}_right": shows}

    content: Params = {
        "fact": torch.tensor([column[name] for name in chosen], dtype=torch.int64),
        "task": torch.tensor([task_of[name] for name in chosen], dtype=torch.int64),
        "drawn": torch.arange(len(chosen)) >= len(forgotten),
    }
    content |= rows([found[task_of[name]][name] for name in chosen], "learned")
    content |= rows([now[name] for name in chosen], "now")
    pictures = [small(images[item][0]) for item in place]
    return content | {"pictures": torch.stack(pictures) if pictures else torch.zeros(0, 3, 1, 1, dtype=torch.uint8)}


def _precision(found: Found, name: str) -> Any:
    """A fact's average precision; None where it has none, or was not asked for."""
    value = found.get(name, {}).get("average_precision")
    return None if value is None or math.isnan(value) else value
