"""Facts for the report that need no model call: metrics, versions and what was held out."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pargo_ds.settings_file import read_yaml

PACKAGES = ("torch", "transformers", "deepspeed", "timm", "mosaicml-streaming", "peft")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl. Raises ValueError when the file is missing or a line is not JSON."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the metrics.jsonl of a finished run")
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is not a metrics file: {error}") from error


def run_config(metrics: Path) -> dict[str, Any]:
    """Read the config.yaml beside a metrics file; {} if there is none."""
    path = metrics.parent / "config.yaml"
    if not path.is_file():
        return {}
    return read_yaml(path).values


def stage_facts(
    name: str, rows: Sequence[dict[str, Any]], config: dict[str, Any]
) -> dict[str, Any]:
    """Return the figures of one stage for report.json: steps, packs, seconds per step (median),
    first and last loss.
    """
    seconds = sorted(row["step_s"] for row in rows if row.get("step_s") is not None)
    per_step = config.get("batch", {}).get("packs_per_step")
    facts: dict[str, Any] = {"name": name, "steps": 0}
    facts |= dict.fromkeys(("packs", "seconds_per_step", "first_loss", "last_loss"))
    if rows:
        first, last = rows[0], rows[-1]
        facts |= {"steps": last["step"], "first_loss": first["loss"], "last_loss": last["loss"]}
    if per_step:
        facts["packs"] = facts["steps"] * per_step
    if seconds:
        facts["seconds_per_step"] = seconds[len(seconds) // 2]
    return facts


def run_facts(model_folder: Path, stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts about the run that the page shows."""
    shown = {f"stage {number}": stage for number, stage in enumerate(stages, start=1)}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)}
    device = f"CPU ({platform.machine()})"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
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
    """Return what was held out, from split.json. Raises ValueError when it is missing."""
    path = shards / "split.json"
    if not path.is_file():
        raise ValueError(
            f"{shards} has no split.json; expected what tools/build_shards.py scenes writes"
        )
    split = json.loads(path.read_text())
    counts, concepts = split["counts"], split["held_out_concepts"]
    sources = {name: f"{e['source']} ({e['license']})" for name, e in split["sources"].items()}
    return {
        "scenes": f"{counts['train']} to train on, {counts['validation']} held out: all of them new compositions",
        "held_out_style": split["hold_out_style"] or "none: the same artist drew both splits",
        "held_out_concepts": f"{len(concepts)} of {len(split['concepts']['validation'])}: {', '.join(concepts)}",
        "styles": split["styles"],
        "sources": sources,
    }
