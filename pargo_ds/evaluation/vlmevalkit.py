"""Answers -> the prediction file that VLMEvalKit's evaluation reads. Imports no torch.

It is the benchmark's own TSV without its images, with a column `prediction`: what VLMEvalKit writes
after its own asking (vlmeval/inference.py), named MODEL_DATASET.tsv.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Item
from pargo_ds.evaluation.benchmarks import benchmark_named
from pargo_ds.evaluation.benchmarks.files import Row, read_tsv
from pargo_ds.evaluation.score import same_questions, stores_in
from pargo_ds.evaluation.store import Store
from pargo_ds.files.whole_file import write_whole


def write_predictions(out: Path, tables: Mapping[str, Path], model: str) -> list[Path]:
    """Write OUT/NAME/vlmevalkit/MODEL_DATASET.tsv for each benchmark's TSV; returns the files.

    DATASET is the TSV's own name, by which VLMEvalKit knows it. Raises UserError for a benchmark
    without answers, OtherAnswersError when the TSV has other questions than were asked,
    MissingAnswersError while answers are missing.
    """
    stores = stores_in(out)
    written = []
    for name, table in tables.items():
        if name not in stores:
            raise UserError(f"{out} holds no answers to {name}; it has {', '.join(stores)}")
        store = stores[name]
        said = _said_by_row(name, store, table)
        path = store.folder / "vlmevalkit" / f"{model}_{table.stem}.tsv"
        write_whole(path, predictions(read_tsv(table), said))
        written.append(path)
    return written


def predictions(rows: Sequence[Row], said: Sequence[str]) -> str:
    """The rows' cells and what was said to each, tab-separated, every cell in quotes as VLMEvalKit
    writes them.
    """
    file = io.StringIO()
    columns = [*rows[0].cells, "prediction"]
    writer = csv.DictWriter(
        file, columns, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n"
    )
    writer.writeheader()
    for row, text in zip(rows, said, strict=True):
        writer.writerow({**row.cells, "prediction": text})
    return file.getvalue()


def _said_by_row(name: str, store: Store, table: Path) -> list[str]:
    benchmark = benchmark_named(name)
    prompt = benchmark.prompts[store.asked()["prompt"]["name"]]
    if prompt.likelihood:
        raise UserError(
            f"{store.folder}: losses were asked for, and no words, which a prediction needs; ask "
            f"again with another prompt of {', '.join(benchmark.prompts)}"
        )
    if table.suffix != ".tsv":
        raise UserError(f"{table}: expected VLMEvalKit's .tsv of {name}")
    items = store.items()
    same_questions(items, benchmark.read(table, prompt), store.folder, table)
    answers, _ = store.answers(items)
    rows = read_tsv(table)
    if name != "pope":
        return [answer.text for answer in answers]
    return _said_to_pope(rows, items, answers)


def _said_to_pope(
    rows: Sequence[Row], items: Sequence[Item], answers: Sequence[Answer]
) -> list[str]:
    """A row of several splits was asked once for each of them; the first answer stands for it."""
    said: dict[str, str] = {}
    for item, answer in zip(items, answers, strict=True):
        said.setdefault(item.id.partition("/")[2], answer.text)
    return [said[row.get("question_id") or row.text("index")] for row in rows]
