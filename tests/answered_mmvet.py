"""Answers to a benchmark in a folder, as asking leaves them, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import official_layouts as layouts

from pargo_ds.evaluation.benchmark import Answer, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.store import Store, digest, item_lines

THREE = ("red", "x = -1", "three")


def answered(folder: Path, texts: Sequence[str] = THREE, name: str = "mmvet") -> Store:
    """Ask the tiny files of a benchmark, and answer with these texts."""
    benchmark = BENCHMARKS[name]
    prompt_name, prompt = next(iter(benchmark.prompts.items()))
    source = layouts.WRITERS[name](folder.parent / f"{name}_files")
    items = read_items(benchmark, source, prompt, subset=True)
    store = Store(folder / name)
    asked = {
        "questions": digest(item_lines(items)), "number": len(items), "units": 1,
        "expected": list(benchmark.questions), "prompt": {"name": prompt_name},
        "settings": {"images": "real"},
    }  # fmt: skip
    store.open(asked, items)
    answers = [Answer(id=item.id, text=text) for item, text in zip(items, texts, strict=True)]
    store.write(0, {"unit": 0, "halved": 0}, answers)
    return store
