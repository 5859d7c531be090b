"""Recognition as a kind of task: the classes of each task told apart by a head of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripletmas.basics.options import Option
from tripletmas.data.source import Source
from tripletmas.objectives import classes
from tripletmas.objectives.kind import Data, Kind, Map, Primary, Wording
from tripletmas.objectives.recognition.objective import RIDGE_DIM, Recognition

DEFINITIONS = {
    "accuracy": "the task's own head names the query's class, told which task it is",
    "accuracy_fresh": "the nearest class mean is the query's; means re-computed by the present model",
    "accuracy_stale": "the same with each mean as it was when its class was learned",
    "accuracy_compensated": "the same with the old means moved by the drift that new tasks' data show (SDC)",
    "accuracy_ridge": "a ridge classifier says the query's class; from sums over tasks, by the model of their time",
    **classes.DEFINITIONS,
}
WORDING = Wording(
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
    definitions=DEFINITIONS,
)


class RecognitionKind(Kind):
    name = "recognition"
    says = "a linear head for each task under cross-entropy"
    primary = Primary(
        "accuracy", "task", "task-incremental accuracy", "task-incremental accuracy: each task by its own head"
    )
    wording = WORDING
    datasets = classes.DATASETS
    stream_options = classes.STREAM_OPTIONS
    losses = ("cross_entropy",)

    def data(self, source: Source, given: Mapping[str, Any]) -> Data:
        if source.pairs:
            raise ValueError("pairs are no classes to recognise: learn them with objective metric, --loss ntxent")
        return classes.class_data(source, given)

    def loss_options(self, name: str) -> dict[str, Option]:
        says = "random dimensions of the ridge classifier; a checkpoint holds their square; 0: the embedding itself"
        return {"ridge_dim": Option(int, RIDGE_DIM, says)}

    def objective(self, loss: str, given: Mapping[str, Any], *, dim: int, data: Data) -> Recognition:
        tasks = [task.classes for task in data.stream]
        return Recognition(dim, tasks, data.stream[0].train.class_names, **given)
