from .embedding import Embeddings as Embeddings
from .embedding import embed as embed
from .making import make_model as make_model
from .text import TextEncoder as TextEncoder
