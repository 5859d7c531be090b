from .making import make_app as make_app
from .serving import Limits as Limits
