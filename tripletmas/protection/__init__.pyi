from .batches import Forward as Forward
from .coverage import Coverage as Coverage
from .guard import Guard as Guard
from .penalty import quadratic_penalty as quadratic_penalty
from .protection import MAS as MAS
from .protection import LocalMAS as LocalMAS
from .protection import Protection as Protection
from .structured.gram import Gram as Gram
