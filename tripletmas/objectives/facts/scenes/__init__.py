"""Drawn scenes in which facts hold."""
