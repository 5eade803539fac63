"""The embedded captioner: composed scenes say what is in them, so all stages run offline, and a
planted fault is known to be one.
"""

from __future__ import annotations

from typing import Any

from pargo_ds.captioning.answer import Caption, Part, cell_of
from pargo_ds.data.shards.schema import Sample
from pargo_ds.errors import CaptionError
from pargo_ds.scenes.captions import NUMBER_WORDS
from pargo_ds.scenes.concepts import with_article

NAME = "truth"
"""The model of these captions in their provenance."""


def truth_caption(sample: Sample) -> Caption:
    """Return the caption of a composed scene, of its `meta.objects` (see
    pargo_ds/scenes/splits.py).

    Raises CaptionError for a sample that is no composed scene.
    """
    objects = sample.meta.get("objects")
    if not isinstance(objects, list) or not objects:
        raise CaptionError(
            f"sample {sample.id} is no composed scene: it has no meta.objects. The captioner truth "
            "describes what build_shards.py scenes made; give an endpoint for other images"
        )
    salient, small = objects[0], objects[1:]
    count = NUMBER_WORDS.get(len(small), str(len(small)))
    whole = f"{_phrase(salient, 'large')} {salient['place']} and {count} small objects"
    names = ", ".join(_phrase(thing) for thing in small)
    parts = [Part(_cell(salient), _sentence(_phrase(salient, "large")))]
    for thing in small:
        parts.append(Part(_cell(thing), _sentence(_phrase(thing, "small"))))
    return Caption(f"{_sentence(whole)} The small ones are {names}.", tuple(parts))


def _phrase(thing: dict[str, Any], size: str = "") -> str:
    return with_article(" ".join(filter(None, (size, thing["colour"], thing["name"]))))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _cell(thing: dict[str, Any]) -> str:
    cell = cell_of(thing["place"])
    assert cell is not None, "the scenes' places are the cells"
    return cell
