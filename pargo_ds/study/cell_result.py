"""What is kept of a finished cell: answers, costs, curves, settings; and read again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmarks import benchmark_named
from pargo_ds.evaluation.score import score
from pargo_ds.evaluation.store import Store
from pargo_ds.files.whole_file import write_whole
from pargo_ds.study.attention import SCENES, attention_in_scenes
from pargo_ds.study.cells import RESULT, Cell, changed_since
from pargo_ds.study.costs import projector_ms, projector_size
from pargo_ds.study.results import AskedQuestion
from pargo_ds.study.study_file import Size

PACKAGES = ("torch", "transformers", "deepspeed", "timm", "peft")
CURVE_KEYS = ("step", "loss", "validation_loss", "gap")


def result_of(cell: Cell, size: Size, asked: Path, seconds: float | None) -> dict[str, Any]:
    """Return all that the report needs. `seconds`: of the whole cell, None where it had been
    interrupted.
    """
    answers: list[dict[str, Any]] = []
    for name in size.evaluation:
        answers += judged_answers(asked, name, size)
    curves = {stage.name: read_curve(stage.run.run_dir / "metrics.jsonl") for stage in cell.stages}
    device, device_name = torch.device("cpu"), f"CPU ({platform.machine()})"
    if size.road == "trainer" and torch.cuda.is_available():
        device, device_name = torch.device("cuda"), torch.cuda.get_device_name()
    run = cell.stages[0].run
    attention = None
    if SCENES in size.evaluation:
        attention = attention_in_scenes(cell.stages[-1].export, Path(size.evaluation[SCENES]))
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "settings": cell.settings(),
        "answers": answers,
        "scores": {name: scores_of(asked, name) for name in size.evaluation},
        "projector": {**asdict(projector_size(run)), "ms": projector_ms(run, device)},
        "images": sum(curve[-1].get("images") or 0 for curve in curves.values() if curve),
        "curves": curves,
        "attention": attention,
        "seconds": {
            "cell": seconds,
            "step": {name: seconds_per_step(curve) for name, curve in curves.items()},
        },
        "machine": {
            "device": device_name,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def judged_answers(asked: Path, name: str, size: Size) -> Iterator[dict[str, Any]]:
    """Yield each answer with its question and how right it was by the benchmark's own rule."""
    benchmark, store = benchmark_named(name), Store(asked / name)
    items = store.items()
    answers, _ = store.answers(items)
    prefix = f"{name} " if len(size.evaluation) > 1 else ""
    for item, answer in zip(items, answers, strict=True):
        kind, object_size, *_ = [*item.groups, "", ""]
        if name != SCENES:
            object_size = ""
        question = AskedQuestion(
            id=f"{name}/{item.id}",
            scene=f"{name}/{item.cluster or item.id}",
            type=prefix + (kind or name),
            size=object_size,
            count=item.meta.get("count"),
            place=item.meta.get("place", ""),
        )
        yield {
            **asdict(question),
            "prompt": item.prompt,
            "truth": item.truth,
            "answer": answer.text,
            "right": benchmark.judge(item, answer).right,
        }


def scores_of(asked: Path, name: str) -> dict[str, Any]:
    """Return the benchmark's own figures: {"unit", "headline", "figures": {name: value}}."""
    store = Store(asked / name)
    items = store.items()
    found = score(benchmark_named(name), items, store.answers(items)[0], draws=2)
    figures = {key: entry["value"] for key, entry in found["figures"].items()}
    return {"unit": found["unit"], "headline": found["headline"], "figures": figures}


def read_curve(metrics: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl with what curves are drawn of, and the seconds of each step."""
    lines, before = [], 0.0
    for text in metrics.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["step"] == 0:  # before the first update
            continue
        own = {key: line[key] for key in CURVE_KEYS if line.get(key) is not None}
        own["images"] = line.get("total_images", line.get("images"))  # a trial's add up already
        seconds = line.get("step_s")
        if seconds is None:  # a trial's lines add up
            seconds, before = line["seconds"] - before, line["seconds"]
        lines.append({**own, "seconds": round(seconds, 3)})
    return lines


def seconds_per_step(curve: list[dict[str, Any]]) -> float | None:
    """Return the median of the steps' seconds, None where no step was taken."""
    seconds = sorted(line["seconds"] for line in curve)
    if not seconds:
        return None
    return seconds[len(seconds) // 2]


def read_result(path: Path) -> dict[str, Any]:
    """Read what `result_of` made."""
    return json.loads(path.read_text(encoding="utf-8"))


def questions_of(result: dict[str, Any]) -> list[AskedQuestion]:
    """Return the questions of a result, without the answers."""
    keys = AskedQuestion.__dataclass_fields__
    questions = []
    for entry in result["answers"]:
        questions.append(AskedQuestion(**{key: entry[key] for key in keys}))
    return questions


def take_results(folder: Path, cells: Sequence[Cell], size: Size) -> list[Cell]:
    """Copy the results of another study whose settings, seed and benchmarks are those of a cell
    that has no result yet; returns these cells.

    A copy says under `taken_from` where it came from. Raises UserError for a folder without any
    result.
    """
    paths = sorted(folder.rglob(RESULT))
    if not paths:
        raise UserError(
            f"--take {folder}: no {RESULT} lies there; name the folder of a study's size"
        )
    found = [(path, read_result(path)) for path in paths]
    taken = []
    for cell in cells:
        if cell.result.is_file():
            continue
        for path, result in found:
            if result["scores"].keys() != size.evaluation.keys():
                continue
            if changed_since(cell, result["settings"]):
                continue
            cell.folder.mkdir(parents=True, exist_ok=True)
            copy = {**result, "variant": cell.variant, "taken_from": str(path)}
            write_whole(cell.result, json.dumps(copy))
            taken.append(cell)
            break
    return taken
