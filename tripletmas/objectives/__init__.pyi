from .scores import Scores as Scores
