"""The scorers by name; `name:FOLDER` gives those that need a model's folder."""

from __future__ import annotations

from collections.abc import Callable

from pargo_ds.captioning.score.scorers.base import Scorer
from pargo_ds.errors import CaptionError


def _learned(folder: str) -> Scorer:
    from pargo_ds.captioning.score.scorers.learned import Learned

    return Learned()


def _conse(folder: str) -> Scorer:
    from pargo_ds.captioning.score.scorers.conse import Conse

    return Conse(folder or "runs/parts/llm")


def _pargo(folder: str) -> Scorer:
    from pargo_ds.captioning.score.scorers.pargo import ParGoLoss

    return ParGoLoss(folder)


def _clip(folder: str) -> Scorer:
    from pargo_ds.captioning.score.scorers.clip import Clip

    return Clip(folder)


def _detector(folder: str) -> Scorer:
    from pargo_ds.captioning.score.scorers.detector import Detections

    return Detections(folder)


SCORERS: dict[str, tuple[str, Callable[[str], Scorer]]] = {
    "learned": ("EfficientNet's features and words that the run's own images teach", _learned),
    "conse": ("EfficientNet's classes and the words of SmolLM2's table (conse:LLM_FOLDER)", _conse),
    "detector": ("things that the text names among detected ones (photographs)", _detector),
    "pargo": ("loss of the caption in a ParGo export (pargo:FOLDER)", _pargo),
    "clip": ("a CLIP or SigLIP of transformers (clip:FOLDER)", _clip),
}
"""Name -> what it is, and what makes it."""
NEED_A_FOLDER = ("pargo", "clip")


def make_scorer(said: str) -> Scorer:
    """Make the scorer that a command line names, such as `learned` or `clip:FOLDER`.

    Raises CaptionError for an unknown one or a missing folder.
    """
    name, _, folder = said.partition(":")
    if name not in SCORERS:
        raise CaptionError(f"there is no scorer {name!r}; there are {', '.join(SCORERS)}")
    if name in NEED_A_FOLDER and not folder:
        raise CaptionError(f"the scorer {name} needs a model: {name}:FOLDER")
    return SCORERS[name][1](folder)
