"""Scorers: how well a text fits an image, by models that are unlike each other."""

from pargo_ds.captioning.score.scorers.base import Piece, Scorer
from pargo_ds.captioning.score.scorers.registry import SCORERS, make_scorer

__all__ = ["SCORERS", "Piece", "Scorer", "make_scorer"]
