from .coverage import Coverage as Coverage
from .protection import MAS as MAS
from .protection import LocalMAS as LocalMAS
from .protection import Protection as Protection
from .quadratic import quadratic_penalty as quadratic_penalty
