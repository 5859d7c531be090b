"""How much each weight matters to the model's output, measured without labels."""

from tripletmas.importance.mas import mas_importance

__all__ = ["mas_importance"]
