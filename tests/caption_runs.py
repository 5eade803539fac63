"""Tiny captioning runs for tests: drawn images in shards, selected."""

from __future__ import annotations

from pathlib import Path

from tiny import COLOURS, draw

from pargo_ds.captioning.answer import CELLS
from pargo_ds.captioning.ask.captions import OK
from pargo_ds.captioning.run_files import RunFolder, read_lines, write_lines, write_object
from pargo_ds.captioning.select.candidates import Candidates, ShardSource
from pargo_ds.captioning.select.select import select
from pargo_ds.data.shards.mds import write_shards
from pargo_ds.data.shards.schema import Sample


def squares(count: int, first: int = 0) -> list[Sample]:
    """Images that differ in colour, place and size, each once."""
    return [
        Sample(
            id=f"s{n:03d}",
            images=[draw(COLOURS[n % 6], n % 9, 48 + n)],
            captions={"coarse": f"A {COLOURS[n % 6]} square."},
        )
        for n in range(first, first + count)
    ]


def selected_run(folder: Path, count: int) -> RunFolder:
    """A run whose `count` squares are all selected."""
    write_shards(squares(count), folder / "shards")
    run = RunFolder(folder / "run")
    source = ShardSource.of([str(folder / "shards")])
    select(run, source, Candidates(shortest_side=16), distance=-1)
    return run


def captioned(folder: Path, count: int = 40) -> RunFolder:
    """A run of squares with true captions (the ids say what is drawn)."""
    run = selected_run(folder, count)
    rows = []
    for row in read_lines(run.selected):
        number = int(row["id"][1:])
        colour, cell = COLOURS[number % 6], list(CELLS)[number % 9]
        whole = f"A {colour} square stands on a plain grey ground, with nothing else in it."
        parts = [{"where": cell, "what": f"A plain {colour} square."}]
        rows.append({"id": row["id"], "image": row["image"], "outcome": OK, "global": whole,
                     "parts": parts, "coarse": "", "notes": [], "provenance": {"model": "me"}})  # fmt: skip
    write_lines(run.captions, rows)
    write_object(run.money, {"spent": 0.0, "answers": 0, "maybe_paid": []})
    return run


def numbers_of(run: RunFolder, scorer: str) -> dict[str, list[float]]:
    """(file, id, texts) -> all numbers of a scorer, for comparison with pytest.approx."""
    found = {}
    for path in sorted((run.scores / scorer).glob("*-*.jsonl")):
        for row in read_lines(path):
            numbers = [value for values in [row["global"], *row["parts"]] for value in values]
            found[f"{path.name} {row['id']} {row['texts']}"] = numbers
    return found


def write_clip(folder: Path, tokenizer_folder: Path) -> Path:
    """A random CLIP of two layers, saved as a Hugging Face folder."""
    from transformers import (
        AutoTokenizer,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPConfig(
        text_config={**size, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
                     "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
