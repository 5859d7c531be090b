"""The sentences of the pages: each says what a number or a plot means to a reader who never heard of MAS.

Those that depend on the kind of task are in its folder (`objectives`).
"""

from __future__ import annotations

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
BRIEF = (
    "This run is still learning. The page has the numbers and the curves so far, and is written anew after a task: "
    "reload it for more. All pictures come at the end, or by `tripletmas report`."
)
TESTED = (
    "p: of a paired t-test over the common seeds, which takes their differences to be independent and normally "
    "distributed, corrected for the number of methods (Holm). It and the interval tell of other seeds, not of other "
    "data. Effect: the mean difference in standard deviations of the differences; of few seeds it is too large."
)
SHARED = (
    "Known before: how many of a task's classes earlier tasks had, too; {known} were, over all tasks after the first. "
    "Each task has samples of its own. On everything seen, items of a query's class are right whichever task they are "
    "from; on a task's own gallery only its own items are searched. Where a class is learned again, an earlier task's "
    "score may rise: that is backward transfer, and forgetting below 0."
)
LOSS = (
    "What training minimised, in each epoch; dotted lines mark where the next task begins. The penalty, where there is "
    "one, is the price of moving weights that earlier tasks need."
)
IMPORTANCE = (
    "Importance is how strongly the output (under EWC and SI, the loss) reacts when a weight moves; the protection "
    "holds important weights back. Left: the part of all importance that lies in a layer. Right: importance of an "
    "average weight of it; both axes are logarithmic. Layers run from input (top) to output."
)
MOVEMENT = (
    "How far the weights of each layer went while learning each task, in percent of their own length (L2 norm). "
    "Under protection, layers that hold much importance should move less after the first task."
)
GALLERIES = (
    "Fresh: embedded again by the present model. Stale: each task's part as embedded when it was learned, never again. "
    "Compensated: the stale vectors, moved by a map fitted on each new task's images alone."
)
CURVES_SEEN = (
    "Mean over the tasks learned so far, searching everything seen. Queries are always embedded by the present model. "
    "Where stale falls below fresh, stored vectors no longer fit."
)
CURVES_MOVED = " Compensated wins a part of that back without reading an old image."
CURVES_TASK = "The same, searching only the items of the query's own task: the gallery does not grow."
GALLERY_MAP = "{metric} on each task (column) after learning each task (row). All galleries have one scale of colours."
DRIFT_BY_TASK = (
    "How far the gallery items of each task (column) have turned by the time each later task is learned (row): mean of "
    "1 − cosine of the stored and the fresh vector. 0: not at all; 1: at a right angle."
)
DRIFT_BY_CLASS = (
    "The same for the single classes, the most drifted first. Classes of earlier tasks have had more time to drift."
)
COMPATIBILITY = (
    "Queries embedded by the model after one task (row), searched in a gallery embedded by the model after another "
    "(column), {metric}. The diagonal is a model with itself; what lies below it is what old vectors still find. "
    "Average compatibility: in {share} of the pairs the old gallery serves the newer model's queries no worse than its "
    "own model's. Backward compatibility: {backward}, what old galleries gain (above 0) or lose by the last model's "
    "queries, on average."
)
MAP = (
    "Each mark is a query, seen along the two directions in which the unit-length vectors of all steps together vary "
    "most (one PCA for all steps, {kept} of the variance). So a place means the same at every step, and a mark that "
    "moves has moved in the embedding: that is drift. A line leads to each mark from where it was a step before. The "
    "colour is the {coloured_by}."
)
BARS = (
    "What was lost on earlier tasks between their best moment and the end. Shorter is better; negative means that they "
    "improved."
)
PER_TASK = (
    "Where each method ends on each task: methods that forget are weak on the first tasks, methods that cannot learn "
    "are weak on the last."
)
