"""A study of tiny parts: its shards with questions, run files and study file."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny import COLOURS, ROOT, draw, merged


def question_samples(count: int, first: int = 0) -> list:
    """A square of a colour at a place, captions, and two questions whose truth is known."""
    from pargo_ds.data.shards.schema import Sample

    samples = []
    for number in range(first, first + count):
        colour, place = COLOURS[number % 6], number % 9
        asked = [
            {"question": "What colour is it?", "answer": colour, "type": "colour", "size": "small"},
            {"question": "Is it red?", "answer": "yes" if colour == "red" else "no", "type": "existence",
             "size": "salient", "place": "here"},
        ]  # fmt: skip
        turns = []
        for position, entry in enumerate(asked):
            mark = "" if position else "<image>\n"
            turns.append({"role": "user", "content": mark + entry["question"]})
            turns.append({"role": "assistant", "content": entry["answer"]})
        samples.append(
            Sample(
                id=f"{number:05d}",
                images=[draw(colour, place)],
                turns=turns,
                captions={
                    "coarse": f"A {colour} square.",
                    "detailed": f"A {colour} square on grey.",
                },
                meta={"questions": asked, "objects": [{"size": "small"}] * 2},
            )
        )
    return samples


def write_study(folder: Path, tiny_run: dict, **changes: object) -> Path:
    """Shards, two run files and the study file in `folder`; returns the last. `changes` are those
    of the size.
    """
    from pargo_ds.data.shards.mds import write_shards

    shards = folder / "shards"
    if not shards.exists():
        write_shards(question_samples(60), shards / "train")
        write_shards(question_samples(12, first=1000), shards / "validation")
    data = {"train": str(shards / "train"), "validation": str(shards / "validation")}
    first = {"data": {**data, "text": "captions", "caption": "coarse"}, "train": {"llm": "frozen"}}
    first["data"]["caption_prompts"] = {"coarse": "What is it?"}
    lora = {"mode": "lora", "lr": 1e-2, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}
    second = {"data": data, "train": {"llm": lora}}
    run = merged(tiny_run, {"validation": {"every": 3, "packs": 2}, "train": {"steps": 6}})
    # Two steps and a checkpoint lie between any two moments, so that a kill loses something.
    run = merged(run, {"checkpoint": {"every": 2}, "batch": {"packs_per_step": 2}})
    for name, own in (("first", first), ("second", second)):
        values = {**run, **{key: merged(run[key], value) for key, value in own.items()}}
        values["train"]["llm"] = own["train"]["llm"]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    size = {
        "machine": "a test",
        "road": "one_process",
        "stages": {name: str(folder / f"{name}.yaml") for name in ("first", "second")},
        "reference": "ParGo",
        "variants": {
            "ParGo": {},
            "pooled": {"all": {"projector": {"type": "adaptive_pool", "tokens": 9}}},
        },
        "seeds": [0],
        "evaluation": {"scenes": str(shards)},
        "expected": {"step": {"first": 0.1, "second": 0.1}, "other": 20.0},
        **changes,
    }
    study = {
        "title": "tiny", "question": "Does it run?", "output": str(folder / "out"),
        "sizes": {"quick": size},
    }  # fmt: skip
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def command(study: Path, *arguments: str) -> list[str]:
    """The tool's command line."""
    import sys

    return [sys.executable, str(ROOT / "tools/study.py"), str(study), "--quick", *arguments]
