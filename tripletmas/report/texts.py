"""The sentences of the pages: each says what a number or a plot means to a reader who never heard of MAS."""

from __future__ import annotations

from tripletmas.report.embedding_plot import MAX_COLOURS, Picture

GALLERIES = {"seen": "all tasks seen so far", "task": "the task's own"}

AVERAGE = (
    "After the last task, the share of queries whose nearest neighbour in the gallery of everything seen is of their "
    "own class; mean over the tasks."
)
FORGETTING = (
    "How far recall@1 fell on the earlier tasks, from its best value to the end; mean over them. Lower is better."
)
BACKWARD_TRANSFER = (
    "Recall@1 at the end minus recall@1 right after the task was learned; mean over the earlier tasks. "
    "Below zero, later tasks did harm."
)
LEARNING = (
    "Recall@1 on each task right after it was learned; mean over the tasks. A protection that is too strong forgets "
    "nothing and lowers this."
)
CONVENTION = (
    "recall@k is the share of queries with at least one item of their class among the k nearest; the query itself "
    "never counts. The gallery of all tasks seen so far grows with every task, so scores on it also fall because there "
    "is more to confuse; on a task's own gallery only forgetting lowers them."
)
DEFINITIONS = {
    "recall@1": "the nearest item is of the query's class",
    "recall@2": "at least one of the 2 nearest is",
    "recall@4": "at least one of the 4 nearest is",
    "recall@8": "at least one of the 8 nearest is",
    "r_precision": "share of the class among the R nearest, R being its size",
    "map@r": "the same, weighted to the front: the mean of precision at each hit within R",
    "mrr": "one over the rank of the first item of the class",
}
RECALL = (
    "Recall@1 on the gallery of all tasks seen. Each thin line is one task from the moment it was learned, the thick "
    "line their mean. Lines fall by forgetting, and because the gallery grows."
)
LOSS = (
    "What training minimised, in each epoch; dotted lines mark where the next task begins. The penalty, where there is "
    "one, is the price of moving weights that earlier tasks need."
)
SEEN = (
    "Recall@1 on each task (column) after learning each task (row), among the items of all tasks seen by then. Read a "
    "column downwards to see a task being forgotten."
)
TASK = "The same, searching only among the items of the query's own task: growth of the gallery plays no part here."
IMPORTANCE = (
    "Importance is how strongly the embedding reacts when a weight moves; the protection holds important weights back. "
    "Left: the part of all importance that lies in a layer. Right: importance of an average weight of it; both axes "
    "are logarithmic."
)
MOVEMENT = (
    "How far the weights of each layer went while learning each task, in percent of their own length (L2 norm). "
    "Under protection, layers that hold much importance should move less after the first task."
)
CURVES = (
    "Recall@1 on the gallery of everything seen, mean over the tasks seen so far. It falls by forgetting, and "
    "because the gallery grows with every task; a band is one standard deviation over the seeds."
)
BARS = (
    "What was lost on earlier tasks between their best moment and the end. Shorter is better; negative means that they "
    "improved."
)
PER_TASK = (
    "Where each method ends on each task: methods that forget are weak on the first tasks, methods that cannot learn "
    "are weak on the last."
)


def importance(in_order: bool) -> str:
    """How to read the plot of importance."""
    return f"{IMPORTANCE} Layers run from {'input (top) to output' if in_order else 'top to bottom by name'}."


def embedding_text(picture: Picture) -> str:
    """How to read the picture of an embedding."""
    laid_out = {
        "t-SNE": "laid out in two dimensions by t-SNE, which keeps neighbours together (the distance between groups "
        "means little)",
        "PCA": "seen along their two principal directions (PCA)",
    }[picture.method]
    points = f"{picture.shown} of {picture.of} queries" if picture.shown < picture.of else f"{picture.of} queries"
    why = "" if picture.coloured_by == "class" else ": there are too many classes to tell their colours apart"
    if len(picture.names) > MAX_COLOURS:
        why += "; it runs from dark (first task) to bright (last)"
    text = f"The {points} as the final model embeds them, {laid_out}. The colour is the {picture.coloured_by}{why}."
    return text + (" Classes that form clean groups can be found by nearest neighbour." if not why else "")
