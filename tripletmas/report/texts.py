"""The sentences of the pages: each says what a number or a plot means to a reader who never heard of MAS.

Those that depend on what a run is judged by are in `wording`.
"""

from __future__ import annotations

from tripletmas.report.embedding_plot import MAX_COLOURS, Picture

FORWARD_TRANSFER = (
    "Recall@1 on each task's own gallery just before the task is learned, minus that of the untrained model; mean over "
    "the tasks but the first. What earlier tasks taught for later ones."
)
INTRANSIGENCE = (
    "How much more joint training has right after each task was learned; mean over the tasks. Lower is better: what "
    "the method failed to learn."
)
PAIRED = (
    "Seed by seed, the method minus {first}: mean ± sample standard deviation of the differences, and on how many "
    "seeds it is better, the same, worse. Runs of one seed see the same data and start from the same weights."
)
DEFINITIONS = {
    "accuracy": "the task's own head names the query's class, told which task it is",
    "accuracy_fresh": "the nearest class mean is the query's; means re-computed by the present model",
    "accuracy_stale": "the same with each mean as it was when its class was learned",
    "accuracy_compensated": "the same with the old means moved by the drift that new tasks' data show (SDC)",
    "recall@1": "the nearest item is of the query's class",
    "recall@2": "at least one of the 2 nearest is",
    "recall@4": "at least one of the 4 nearest is",
    "recall@8": "at least one of the 8 nearest is",
    "r_precision": "share of the class among the R nearest, R being its size",
    "map@r": "the same, weighted to the front: the mean of precision at each hit within R",
    "mrr": "one over the rank of the first item of the class",
}
LOSS = (
    "What training minimised, in each epoch; dotted lines mark where the next task begins. The penalty, where there is "
    "one, is the price of moving weights that earlier tasks need."
)
IMPORTANCE = (
    "Importance is how strongly the output (under EWC and SI, the loss) reacts when a weight moves; the protection "
    "holds important weights back. Left: the part of all importance that lies in a layer. Right: importance of an "
    "average weight of it; both axes are logarithmic."
)
MOVEMENT = (
    "How far the weights of each layer went while learning each task, in percent of their own length (L2 norm). "
    "Under protection, layers that hold much importance should move less after the first task."
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
