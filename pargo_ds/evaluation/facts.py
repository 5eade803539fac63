"""Facts for the report that need no model call: metrics, versions, what was held out, the projector's masks."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pargo_ds.model.masks import cascade_mask, partial_global_mask, window_width
from pargo_ds.settings_file import read_yaml

PACKAGES = ("torch", "transformers", "deepspeed", "timm", "mosaicml-streaming", "peft")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl. Raises ValueError when the file is missing or a line is not JSON."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the metrics.jsonl of a finished run")
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is not a metrics file: {error}") from error


def run_config(metrics: Path) -> dict[str, Any]:
    """The resolved config.yaml beside a metrics file, or {}."""
    path = metrics.parent / "config.yaml"
    return read_yaml(path).values if path.is_file() else {}


def stage_facts(name: str, rows: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Figures of one stage for report.json: steps, packs, seconds per step (median), first and last loss."""
    seconds = sorted(row["step_s"] for row in rows if row.get("step_s") is not None)
    per_step = config.get("batch", {}).get("packs_per_step")
    steps = rows[-1]["step"] if rows else 0
    return {
        "name": name,
        "steps": steps,
        "packs": steps * per_step if per_step else None,
        "seconds_per_step": seconds[len(seconds) // 2] if seconds else None,
        "first_loss": rows[0]["loss"] if rows else None,
        "last_loss": rows[-1]["loss"] if rows else None,
    }


def run_facts(model_folder: Path, stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page shows about the run."""
    shown = {f"stage {number}": stage for number, stage in enumerate(stages, start=1)}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {
        **shown,
        "model": str(model_folder),
        "device": device,
        "python": platform.python_version(),
        "versions": versions,
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def split_facts(shards: Path) -> dict[str, Any]:
    """What was held out, from split.json. Raises ValueError when it is missing."""
    path = shards / "split.json"
    if not path.is_file():
        raise ValueError(f"{shards} has no split.json; expected what tools/build_shards.py scenes writes")
    split = json.loads(path.read_text())
    counts, concepts = split["counts"], split["held_out_concepts"]
    return {
        "scenes": f"{counts['train']} to train on, {counts['held_out']} held out: all of them new compositions",
        "held_out_style": split["hold_out_style"] or "none: the same artist drew both splits",
        "held_out_concepts": f"{len(concepts)} of {len(split['concepts']['held_out'])}: {', '.join(concepts)}",
        "styles": split["styles"],
        "sources": {name: f"{entry['source']} ({entry['license']})" for name, entry in split["sources"].items()},
    }


def projector_masks(model: Any) -> list[tuple[str, Any, str]]:
    """(title, mask, meaning of the columns) of each layer's cascade and of the partial-global mask."""
    projector, patches = model.config.projector_config, model.config.vision_config.num_patches
    partial, depth = projector.partial_tokens, projector.layers
    masks = []
    for layer in range(1, depth + 1):
        width = window_width(partial, layer, depth)
        mask = cascade_mask(partial, layer, depth, projector.cascade).numpy()
        masks.append((f"CPP, layer {layer} of {depth}:\neach sees {width} of {partial}", mask, "partial tokens"))
    mask = partial_global_mask(partial, projector.global_tokens, patches, projector.grouping).numpy()
    masks.append((f"PGP, every layer:\n{partial} partial, {projector.global_tokens} global", mask, "patches"))
    return masks
