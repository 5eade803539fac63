"""POPE: is there a THING in the image? Three splits of 3,000 questions over 500 COCO images.

Rule: evaluate.py of the authors. The text before the first full stop, commas out, split at blanks;
No, not or no among the words is a no, and everything else is a yes, nonsense included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    ImageRef,
    Item,
    Judgement,
    Mark,
    Prompt,
    Totals,
    images_of,
    ratio,
)
from pargo_ds.evaluation.benchmarks.files import (
    Row,
    check_images,
    image_file,
    is_table,
    one_folder,
    read_json_lines,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

SPLITS = ("random", "popular", "adversarial")
NO = ("No", "not", "no")


def parse(answer: str) -> str:
    """Return "yes" or "no"; the official rule knows nothing else."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    if any(word in words for word in NO):
        return "no"
    return "yes"


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by the official rule; an answer without the word yes counts as unparsed, and is a yes."""
    said = parse(answer.text)
    clear = said == "no" or "yes" in answer.text.lower()
    return Judgement(said if clear else None, float(said == item.truth))


def marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield the marks of each question of a split: was it right; and is it a true or a false yes or
    no.
    """
    for item, judgement in zip(items, judged, strict=True):
        (split,) = item.groups
        right = judgement.right == 1
        yes = (item.truth == "yes") == right
        yield Mark(f"{split} accuracy", float(right), item)
        yield Mark(f"{split} true yes", float(right and yes), item)
        yield Mark(f"{split} false yes", float(yes and not right), item)
        yield Mark(f"{split} false no", float(not yes and not right), item)


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """Return the mean F1 of the splits (LLaVA's figure), then F1, accuracy, precision, recall,
    yes-ratio.
    """
    splits = [split for split in SPLITS if f"{split} accuracy" in totals.names]
    rows: dict[str, np.ndarray] = {}
    for split in splits:
        true = totals.sums[f"{split} true yes"]
        wrong = totals.sums[f"{split} false yes"]
        missed = totals.sums[f"{split} false no"]
        rows[f"{split} F1"] = 100 * ratio(2 * true, 2 * true + wrong + missed)
        rows[f"{split} accuracy"] = 100 * totals.mean(f"{split} accuracy")
        rows[f"{split} precision"] = 100 * ratio(true, true + wrong)
        rows[f"{split} recall"] = 100 * ratio(true, true + missed)
        asked = totals.counts[f"{split} accuracy"]
        rows[f"{split} yes-ratio"] = 100 * ratio(true + wrong, asked)
    mean = np.mean([rows[f"{split} F1"] for split in splits], axis=0)
    return {"mean F1": mean, **rows}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read a folder with coco_pope_SPLIT.json (JSON lines) and COCO's images, or VLMEvalKit's TSV.

    Raises SourceError for a missing split or image, or a label that is neither yes nor no.
    """
    if is_table(source):
        return _from_table(source, prompt)
    images = one_folder(source, "val2014", "images", "image", "coco/val2014")
    items = []
    for split in SPLITS:
        path = source / f"coco_pope_{split}.json"
        if not path.is_file():
            raise SourceError(f"{path} is missing; POPE has the splits {', '.join(SPLITS)}")
        for row in read_json_lines(path):
            image = image_file(images / row.text("image"), source)
            items.append(_item(row, split, image, row.text("text"), row.text("label"), prompt))
    check_images(images_of(items), source)
    return items


def _from_table(source: Path, prompt: Prompt) -> list[Item]:
    """A row of the table asks the same question for each of its splits."""
    items = []
    for row in read_rows(source):
        for split in _splits_of(row):
            question, label = row.text("question"), row.text("answer")
            items.append(_item(row, split, row.image(), question, label, prompt))
    return items


def _splits_of(row: Row) -> list[str]:
    splits = [split.strip() for split in row.text("category").split(",")]
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise SourceError(f"{row.where}: {unknown} is no split of POPE ({', '.join(SPLITS)})")
    return splits


def _item(row: Row, split: str, image: ImageRef, question: str, label: str, prompt: Prompt) -> Item:
    if label.lower() not in ("yes", "no"):
        raise SourceError(f"{row.where}: the label is {label!r}; expected yes or no")
    number = row.get("question_id") or row.text("index")
    return Item(
        id=f"{split}/{number}",
        prompt=prompt.fill(question),
        images=(image,),
        truth=label.lower(),
        cluster=image.name,
        groups=(split,),
    )


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    files="coco_pope_{random,popular,adversarial}.json and the folder val2014/ of COCO 2014, or "
    "VLMEvalKit's POPE.tsv",
    questions=(9000, 8910),
    source="github.com/AoiDragon/POPE (output/coco), images.cocodataset.org (val2014)",
    licence="MIT (questions), Flickr's terms (images)",
    rule="evaluate.py of the authors: no, not or No in the first sentence, else yes",
    prompts=PROMPTS["pope"],
    read=read,
    judge=judge,
    marks=marks,
    figures=figures,
    headline="mean F1",
)
