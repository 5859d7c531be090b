"""How a model learns task after task: one final class a file."""

from tripletmas.strategies.base import Strategy
from tripletmas.strategies.consolidate import Consolidate
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.mas import local_mas, mas

__all__ = ["Consolidate", "Finetune", "Frozen", "Joint", "Strategy", "local_mas", "mas"]
