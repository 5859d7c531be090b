"""Facts as a kind of task: images that find the facts <subject, predicate, object> that hold of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from tripletmas.basics.options import Option, call, options_of
from tripletmas.data.source import Source
from tripletmas.objectives.facts.fact import parse_fact
from tripletmas.objectives.facts.language import language_view
from tripletmas.objectives.facts.listed import facts
from tripletmas.objectives.facts.losses import FactContrastive, FactDistance
from tripletmas.objectives.facts.objective import Facts
from tripletmas.objectives.facts.scenes.shapes import shapes_facts
from tripletmas.objectives.facts.streams import make_fact_stream
from tripletmas.objectives.facts.visual import make_visual_view
from tripletmas.objectives.facts.words import make_words
from tripletmas.objectives.kind import Data, Kind, Map, Primary, Wording

DEFINITIONS = {
    "map": "fact to image: average precision of the images of the fact, mean over facts",
    "map@10": "the same within the 10 best, divided by the smaller of 10 and the number of its images",
    "map@100": "the same within the 100 best",
    "sherlock_map@10": "the same, divided by the hits found, as Sherlock's code does: inflated, for comparison only",
    "sherlock_map@100": "the same within the 100 best",
    "top@1": "image to fact: share of an image's true facts within rank 1, true facts not counted against each other",
    "top@5": "the same within rank 5",
    "top@10": "the same within rank 10",
    "hit@1": "image to fact: the best fact holds of the image",
    "mrr": "image to fact: one over the rank of the first fact that holds",
}
WORDING = Wording(
    average="After the last task, the average precision with which a fact finds its images among the test images of "
    "all tasks; mean over the facts of a task, then over the tasks.",
    forgetting="How far mAP fell on the earlier tasks, from its best value to the end; mean over them. Lower is "
    "better.",
    backward_transfer="mAP at the end minus mAP right after the task was learned; mean over the earlier tasks. Below "
    "zero, later tasks did harm.",
    learning="mAP of each task right after it was learned; mean over the tasks. A protection that is too strong "
    "forgets nothing and lowers this.",
    convention="Facts search images by the mean of the cosines of the parts (subject, predicate, object) that the fact "
    "has; images search facts by the same score. Among all tasks seen there is more to confuse with every task; on a "
    "task's own images and facts only forgetting lowers the scores. What holds of an image, but belongs to another "
    "task, never counts as an error. Chance is about the share of the images that show the fact.",
    other_metrics=" _1, _2 and _3 are the same for facts of first <S>, second <S, P> and third order <S, P, O>.",
    curves="mAP on the test images of all tasks seen. Each thin line is one task from the moment it was learned, the "
    "thick line their mean. Lines fall by forgetting, and because there are more images.",
    averages="mAP on the test images of all tasks seen so far, mean over the tasks. It falls by forgetting, and "
    "because there are more images with every task; a band is one standard deviation over the seeds.",
    loss="fact loss",
    galleries={"seen": "among all tasks seen so far", "task": "within the task's own"},
    maps=(
        Map(
            "map",
            "seen",
            "mAP, images of all tasks seen so far",
            "mAP of the facts of each task (column) after learning each task (row). Read a column downwards to see a "
            "task being forgotten.",
        ),
        Map(
            "top@5",
            "seen",
            "Top-5, facts of all tasks seen so far",
            "The share of what holds of a test image that is among its five best facts, for each task (column) after "
            "learning each task (row).",
        ),
    ),
    definitions=DEFINITIONS,
    unseen=(
        "Facts never trained on",
        "mAP of facts that no training image shows, among all test images: whether the embedding knows a combination "
        "that is new to it.",
    ),
    shown=(
        "Facts and what they find",
        "A fact and the five best test images for it, when its task was learned and after the last task, best first. "
        "✓ and a green frame: the fact holds of the image; ✗ and an orange dashed frame: it does not. There are more "
        "images now than when an early task was learned, so scores also fall because there is more to confuse. Numbers "
        "are average precision; chance is that of images in a random order.",
    ),
    left_out="facts hold of no test image and are not counted",
)

_DATASETS = {"shapes-facts": shapes_facts, "facts": facts}
# An image of facts has several at once, so there are no classes to balance, and no pairs that a batch must hold.
_DEFAULTS = {
    "training": {"epochs": 5, "sampler": "shuffled", "lr": 0.003, "schedule": "cosine"},
    "model": {"width": 32},
}
_LOSSES = {"fact_contrastive": FactContrastive, "fact_distance": FactDistance}


class FactsKind(Kind):
    name = "facts"
    says = "images that find their facts"
    primary = Primary(
        "map", "seen", "mAP", "mAP of facts that search images, on the test images of all tasks seen", "map", "mAP"
    )
    wording = WORDING
    datasets = _DATASETS
    stream_options = (make_fact_stream, make_words)
    losses = tuple(_LOSSES)
    defaults = _DEFAULTS
    main_metrics = ("map", "map@10", "map_1", "map_2", "map_3", "top@1", "top@5", "top@10", "mrr")
    finds_items = False  # a fact has no single right answer that could turn
    takes_other_data = False

    def data(self, source: Source, given: Mapping[str, Any]) -> Data:
        language = language_view([parse_fact(each) for each in source.train.class_names], call(make_words, given))
        stream, unseen = call(make_fact_stream, given, source, language)
        return Data(stream, unseen, language)

    def says_of(self, loss: str) -> str:
        return str(inspect.getdoc(_LOSSES[loss])).partition("\n")[0]

    def loss_options(self, name: str) -> dict[str, Option]:
        return options_of(_LOSSES[name])

    def objective(self, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> Facts:
        return Facts(_LOSSES[loss](data.about, **given))

    def model_options(self, name: str) -> dict[str, Option]:
        """Those of the visual view, but for `dim`: the length of a part is that of the word vectors."""
        own = {key: option for key, option in super().model_options(name).items() if key != "dim"}
        return own | {"branch_at": options_of(make_visual_view)["branch_at"]}

    def model(
        self,
        name: str,
        given: Mapping[str, Any],
        sample_shape: tuple[int, ...],
        *,
        of_data: Mapping[str, Any],
        data: Data | None = None,
    ) -> nn.Module:
        own = {key: value for key, value in given.items() if key != "branch_at"}
        dim = call(make_words, of_data).dim if data is None else data.about.dim
        return make_visual_view(name, sample_shape, dim=dim, branch_at=given["branch_at"], options=own)
