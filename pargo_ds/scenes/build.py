"""Write a data set of composed scenes: a folder of shards for each split, and split.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pargo_ds.data.shards.mds import write_shards
from pargo_ds.files.whole_folder import whole_folder
from pargo_ds.scenes.glyphs import prepare_style
from pargo_ds.scenes.splits import SPLITS, ScenesPlan, scene_samples


def build_scenes(
    plan: ScenesPlan, out: Path, *, compression: str, workers: int, force: bool
) -> dict[str, Any]:
    """Write both splits and split.json into `out`, which is whole or absent, and return what
    split.json says. `force` replaces a folder that exists.

    Raises ValueError for faults that the user can correct.
    """
    for style in plan.styles:
        # Missing images are an error now, not after the first split.
        prepare_style(style, plan.cache)
    description = plan.description()
    with whole_folder(out, force=force) as unfinished:
        for split in SPLITS:
            samples = scene_samples(plan, split, workers=workers)
            total = getattr(plan, split)
            shown = tqdm(samples, total=total, desc=f"{split:>8}", unit="scene", disable=None)
            write_shards(shown, unfinished / split, compression=compression)
        text = json.dumps(description, indent=1, sort_keys=True) + "\n"
        (unfinished / "split.json").write_text(text)
    return description
