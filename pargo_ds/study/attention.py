"""What the tokens of a cell's trained projector attend to, in the first scenes that it is asked about."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

from PIL import Image

from pargo_ds.data.shards.mds import read_samples
from pargo_ds.data.shards.splits import split_folders
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.inspection.attention_maps import attention_over_patches

SCENES = "scenes"
SCENES_SHOWN = 2
DIGITS = 4


def attention_in_scenes(export: Path, scenes: Path) -> dict[str, Any] | None:
    """Return {"scenes": ids, "num_partial", "weights": `(scenes, tokens, patches)` as lists}; None
    for a projector that does not attend to patches, or scenes without images.
    """
    seen = (sample for sample in read_samples(split_folders(scenes)[0]) if sample.images)
    samples = list(itertools.islice(seen, SCENES_SHOWN))
    if not samples:
        return None
    model, processor = load_exported(export)
    images = [Image.open(io.BytesIO(sample.images[0])) for sample in samples]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    weights = attention_over_patches(model, pixels.to(model.device))
    if weights is None:
        return None
    return {
        "scenes": [f"{SCENES}/{sample.id}" for sample in samples],
        "num_partial": getattr(model.config.projector_config, "partial_tokens", 0),
        "weights": weights.cpu().numpy().round(DIGITS).tolist(),
    }
