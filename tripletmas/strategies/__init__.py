"""How a model learns task after task: one final class a file."""

from tripletmas.strategies.base import Strategy
from tripletmas.strategies.consolidate import Consolidate, local_mas, mas
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.joint import Joint

__all__ = ["Consolidate", "Finetune", "Frozen", "Joint", "Strategy", "local_mas", "mas"]
