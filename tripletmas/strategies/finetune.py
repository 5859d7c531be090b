"""Finetune: train on each task, protect nothing. The lower bound."""

from __future__ import annotations

from tripletmas.strategies.base import Strategy


class Finetune(Strategy):
    """Train on each task in turn and do nothing about forgetting."""
