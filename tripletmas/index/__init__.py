"""Nearest-neighbour search: exact, or by any index of faiss, under one protocol. faiss is imported nowhere else.

Scores are always larger for what is nearer: inner products, or *negative squared* distances for the metric "l2".
"""

import lazy_loader

# The names stand in the stub beside this file, once; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
