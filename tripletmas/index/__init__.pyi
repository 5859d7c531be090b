from .approximate import FaissIndex as FaissIndex
from .base import Index as Index
from .base import queries_per_block as queries_per_block
from .base import unit as unit
from .clustering import cluster as cluster
from .exact import ExactIndex as ExactIndex
from .making import make_index as make_index
from .making import recall_against as recall_against
