"""How much each weight matters to the model's output, measured without labels."""

from tripletmas.importance.accumulator import ImportanceAccumulator, merge_importance
from tripletmas.importance.batches import Forward
from tripletmas.importance.local_mas import local_mas_importance
from tripletmas.importance.mas import mas_importance

__all__ = ["Forward", "ImportanceAccumulator", "local_mas_importance", "mas_importance", "merge_importance"]
