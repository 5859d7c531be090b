"""The version, in a file of its own so that `tripletmas --version` need not import torch."""

__version__ = "0.1.0"
