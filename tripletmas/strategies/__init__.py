"""How a model learns task after task: one final class a file."""

from tripletmas.strategies.base import Strategy
from tripletmas.strategies.combine import Combine
from tripletmas.strategies.consolidate import Consolidate
from tripletmas.strategies.distill import Distill
from tripletmas.strategies.ebll import EBLL
from tripletmas.strategies.ewc import ElasticWeightConsolidation
from tripletmas.strategies.finetune import Finetune
from tripletmas.strategies.frozen import Frozen
from tripletmas.strategies.imm import IMM
from tripletmas.strategies.joint import Joint
from tripletmas.strategies.l2 import l2
from tripletmas.strategies.mas import local_mas, mas
from tripletmas.strategies.replay import Replay
from tripletmas.strategies.si import SynapticIntelligence

__all__ = [
    "EBLL",
    "IMM",
    "Combine",
    "Consolidate",
    "Distill",
    "ElasticWeightConsolidation",
    "Finetune",
    "Frozen",
    "Joint",
    "Replay",
    "Strategy",
    "SynapticIntelligence",
    "l2",
    "local_mas",
    "mas",
]
