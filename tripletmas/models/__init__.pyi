from .embedding import Embeddings as Embeddings
from .embedding import embed as embed
from .networks import make_model as make_model
from .text import TextEncoder as TextEncoder
