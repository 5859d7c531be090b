"""How much each weight matters to the model's output, or to its loss."""

from tripletmas.importance.accumulator import ImportanceAccumulator, merge_importance
from tripletmas.importance.batches import Forward
from tripletmas.importance.fisher import FisherLabels, fisher_importance, squared_gradient_importance
from tripletmas.importance.local_mas import local_mas_importance
from tripletmas.importance.mas import mas_importance

__all__ = [
    "FisherLabels",
    "Forward",
    "ImportanceAccumulator",
    "fisher_importance",
    "local_mas_importance",
    "mas_importance",
    "merge_importance",
    "squared_gradient_importance",
]
