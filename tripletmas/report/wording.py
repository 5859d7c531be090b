"""The sentences that depend on what a run is judged by: for metric learning, for recognition and for facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tripletmas.report import texts
from tripletmas.report.primary import FACTS, METRIC_LEARNING, RECOGNITION, Primary


@dataclass(frozen=True)
class Map:
    """A score matrix that the report of a run shows as a heat map."""

    metric: str
    gallery: str
    title: str
    text: str


@dataclass(frozen=True)
class Wording:
    """What the pages say of the primary score.

    Attributes:
        average, forgetting, backward_transfer, learning: what each number is.
        convention: how to read the primary score.
        other_metrics: what else there is to know where all metrics are shown; begins with a space, or is empty.
        curves: under the curves of one run.
        averages: under the curves of several methods.
        loss: what the panel of the training loss is called.
        galleries: gallery -> how the table of all metrics calls it.
        maps: the score matrices of one run's report.
        definitions: what each metric is, in the order of the table.
        unseen: title and text of the plot of what was never trained on.
    """

    average: str
    forgetting: str
    backward_transfer: str
    learning: str
    convention: str
    other_metrics: str
    curves: str
    averages: str
    loss: str
    galleries: dict[str, str]
    maps: tuple[Map, ...]
    definitions: Mapping[str, str]
    unseen: tuple[str, str] = (
        "Classes never trained on",
        "Recall@1 among classes that belong to no task and are never trained on: whether the embedding itself becomes "
        "better or worse for what it does not know.",
    )


def wording(primary: Primary) -> Wording:
    """The sentences for runs that are judged by this score."""
    return _WORDING[primary.objective]


_RETRIEVAL = Wording(
    average="After the last task, the share of queries whose nearest neighbour in the gallery of everything seen is of "
    "their own class; mean over the tasks.",
    forgetting="How far recall@1 fell on the earlier tasks, from its best value to the end; mean over them. Lower is "
    "better.",
    backward_transfer="Recall@1 at the end minus recall@1 right after the task was learned; mean over the earlier "
    "tasks. Below zero, later tasks did harm.",
    learning="Recall@1 on each task right after it was learned; mean over the tasks. A protection that is too strong "
    "forgets nothing and lowers this.",
    convention="recall@k is the share of queries with at least one item of their class among the k nearest; the query "
    "itself never counts. The gallery of all tasks seen so far grows with every task, so scores on it also fall "
    "because there is more to confuse; on a task's own gallery only forgetting lowers them.",
    other_metrics="",
    curves="Recall@1 on the gallery of all tasks seen. Each thin line is one task from the moment it was learned, the "
    "thick line their mean. Lines fall by forgetting, and because the gallery grows.",
    averages="Recall@1 on the gallery of everything seen, mean over the tasks seen so far. It falls by forgetting, and "
    "because the gallery grows with every task; a band is one standard deviation over the seeds.",
    loss="metric loss",
    galleries={"seen": "gallery: all tasks seen so far", "task": "gallery: the task's own"},
    maps=(
        Map(
            "recall@1",
            "seen",
            "Recall@1, gallery: all tasks seen so far",
            "Recall@1 on each task (column) after learning each task (row), among the items of all tasks seen by then. "
            "Read a column downwards to see a task being forgotten.",
        ),
        Map(
            "recall@1",
            "task",
            "Recall@1, gallery: the task's own",
            "The same, searching only among the items of the query's own task: growth of the gallery plays no part "
            "here.",
        ),
    ),
    definitions=texts.DEFINITIONS,
)

_RECOGNITION = Wording(
    average="After the last task, the share of queries that their task's own head recognises, told which task it is; "
    "mean over the tasks.",
    forgetting="How far this accuracy fell on the earlier tasks, from its best value to the end; mean over them. Lower "
    "is better.",
    backward_transfer="Accuracy at the end minus accuracy right after the task was learned; mean over the earlier "
    "tasks. Below zero, later tasks did harm.",
    learning="Accuracy on each task right after it was learned; mean over the tasks. A protection that is too strong "
    "forgets nothing and lowers this.",
    convention="A query is told which task it is from, and that task's head chooses among the task's classes, so only "
    "forgetting lowers the accuracy.",
    other_metrics=" Class-incremental accuracy is told no task: the nearest class mean on the embedding chooses among "
    "all classes seen so far, which also gets harder because they become more. The other metrics search for items of "
    "the query's class; the query itself never counts.",
    curves="Task-incremental accuracy: the task's own head, told which task it is. Each thin line is one task from the "
    "moment it was learned, the thick line their mean. Lines fall by forgetting alone.",
    averages="Task-incremental accuracy (the task's own head, told which task it is), mean over the tasks seen so far. "
    "Tasks differ in difficulty, so the mean moves as tasks join it; a band is one standard deviation over the seeds.",
    loss="cross-entropy",
    galleries={"seen": "among all tasks seen so far", "task": "within the query's own task"},
    maps=(
        Map(
            "accuracy",
            "task",
            "Task-incremental accuracy",
            "Accuracy of the task's own head on each task (column) after learning each task (row). Read a column "
            "downwards to see a task being forgotten.",
        ),
        Map(
            "accuracy_fresh",
            "seen",
            "Class-incremental accuracy, fresh class means",
            "The same without being told the task: the nearest class mean among all classes seen by then. Means are "
            "re-computed from the training data by the present model; growth of the choice lowers it, too.",
        ),
    ),
    definitions=texts.DEFINITIONS,
)

_FACTS = Wording(
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
    definitions=texts.FACT_DEFINITIONS,
    unseen=(
        "Facts never trained on",
        "mAP of facts that no training image shows, among all test images: whether the embedding knows a combination "
        "that is new to it.",
    ),
)

_WORDING = {
    METRIC_LEARNING.objective: _RETRIEVAL,
    RECOGNITION.objective: _RECOGNITION,
    FACTS.objective: _FACTS,
}
