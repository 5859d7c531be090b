"""Continual metric learning: embeddings learned task by task, protected by Memory Aware Synapses.

A **stream** is a tuple of **tasks**. A **model** maps inputs to raw embeddings. For each task, the training loop
minimises a **metric loss** plus what the **strategy** adds. After each task, queries are searched against galleries
and the scores fill a matrix; forgetting is read off that matrix. Two axes vary freely: the *strategy* (how the model
learns) and the *gallery* (fresh, stale, compensated).

"Triplet" is (anchor, positive, negative), the metric-learning loss; in `facts` it is <subject, predicate, object>.
"""

import lazy_loader

from tripletmas.basics.version import __version__ as __version__

# The names stand in the stub beside this file, once; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
