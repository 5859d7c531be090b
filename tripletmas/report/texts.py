"""The sentences of the pages: each says what a number or a plot means to a reader who never heard of MAS.

Those that depend on what a run is judged by are in `wording`.
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
FACT_DEFINITIONS = {
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
    "Where stale falls below fresh, stored vectors no longer fit; compensated wins a part back without reading an old "
    "image."
)
CURVES_TASK = "The same, searching only the items of the query's own task: the gallery does not grow."
GALLERY_MAP = "{metric} on each task (column) after learning each task (row). All six maps have one scale of colours."
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
NEIGHBOURS = (
    "Pictures of test queries and the five nearest items of the gallery of everything seen, before the last task was "
    "learned and after it, the nearest first. ✓ and a green frame: of the query's class; ✗ and an orange dashed frame: "
    "of another. Queries whose first answer turned right or wrong come first, then those that found more or fewer: "
    "they show what changed and are no fair sample."
)
FACTS = (
    "A fact and the five best test images for it, when its task was learned and after the last task, best first. "
    "✓ and a green frame: the fact holds of the image; ✗ and an orange dashed frame: it does not. There are more "
    "images now than when an early task was learned, so scores also fall because there is more to confuse. Numbers are "
    "average precision; chance is that of images in a random order."
)
SHOWN = {  # what a run is judged by -> the title of its grid, and how to read it
    "metric learning": ("Queries and what they find", NEIGHBOURS),
    "facts": ("Facts and what they find", FACTS),
}
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
