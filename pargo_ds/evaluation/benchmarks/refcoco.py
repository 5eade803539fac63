"""RefCOCO, RefCOCO+ and RefCOCOg as boxes: where is what the sentence describes?

Only for models that were trained to answer with boxes; one that never does gets no figure. An
answer is read as InternVL's evaluate_grounding.py reads it, which is also how Qwen-VL's and
VLMEvalKit's take them: the first four numbers in brackets, x1, y1, x2, y2, as shares of the image's
width and height, or in thousandths. It is right from an IoU of 0.5 on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement, Prompt, Totals
from pargo_ds.evaluation.benchmarks.files import (
    Row,
    check_images,
    image_file,
    one_folder,
    read_json_lines,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

EXPRESSIONS = {
    "refcoco_val": 10834, "refcoco_testA": 5657, "refcoco_testB": 5095,
    "refcoco+_val": 10758, "refcoco+_testA": 5726, "refcoco+_testB": 4889,
    "refcocog_val": 4896, "refcocog_test": 9602,
}  # fmt: skip
"""Expressions of each split; its file is named after it, .jsonl."""
VALIDATION = sum(number for split, number in EXPRESSIONS.items() if split.endswith("_val"))
BOX = re.compile(r"\[(.*?),(.*?),(.*?),(.*?)\]")
THOUSANDTHS = 4.0
"""Four shares add up to less; more are thousandths."""
RIGHT = 0.5

Box = Sequence[float]


def parse(answer: str) -> list[float] | None:
    """x1, y1, x2, y2 as shares of width and height; None where no four numbers are in brackets."""
    match = BOX.search(answer)
    if match is None:
        return None
    try:
        numbers = [float(word.strip("[ ")) for word in match.groups()]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    return [number / 1000 for number in numbers] if sum(numbers) >= THOUSANDTHS else numbers


def iou(one: Box, other: Box) -> float:
    """Common area of two boxes (x1, y1, x2, y2) by the area of both together; 0 where one of them
    has none.
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if min(width, height) <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _judged(box: Box | None, truth: Box) -> Judgement:
    if box is None:
        return Judgement(None, 0.0)
    said = ", ".join(f"{number:.3f}" for number in box)
    return Judgement(f"[{said}]", float(iou(box, truth) >= RIGHT))


def judge(item: Item, answer: Answer) -> Judgement:
    """IoU of 0.5 or more, in shares of the image."""
    return _judged(parse(answer.text), item.truth)


def judge_in_square(item: Item, answer: Answer) -> Judgement:
    """The same for boxes in shares of the square to which LLaVA pads an image, as in its training
    data.
    """
    box = parse(answer.text)
    if box is None:
        return Judgement(None, 0.0)
    width, height = item.meta["size"]
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    places = zip(box, (left, top, left, top), (width, height, width, height), strict=True)
    return _judged([(share * side - pad) / size for share, pad, size in places], item.truth)


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """In percent: the mean of the splits, then each split."""
    shares = {name: 100 * totals.mean(name) for name in totals.names if name != "overall"}
    return {"mean of the splits": np.mean(list(shares.values()), axis=0), **shares}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Files SPLIT.jsonl of a folder, or one of them, with train2014/ of COCO beside them.

    Raises SourceError when there is no such file, or for a box that is not inside of its image.
    """
    files = [source] if source.is_file() else sorted(source.glob("refcoco*.jsonl"))
    unknown = [path.name for path in files if path.stem not in EXPRESSIONS]
    if unknown or not files:
        raise SourceError(
            f"{source} has {', '.join(unknown) or 'no refcoco*.jsonl'}; expected files named "
            f"{', '.join(EXPRESSIONS)} with .jsonl. The pickles of the first release (refs(unc).p) "
            "are not opened"
        )
    folder = files[0].parent
    images = one_folder(folder, "train2014", "images")
    items: list[Item] = []
    for path in files:
        for number, row in enumerate(read_json_lines(path)):
            items.append(_item(path.stem, number, row, images, folder, prompt))
    check_images((image for item in items for image in item.images), images)
    return items


def _item(split: str, number: int, row: Row, images: Path, folder: Path, prompt: Prompt) -> Item:
    width, height = (int(row.text(name)) for name in ("width", "height"))
    box, name = row.cells.get("bbox"), Path(row.text("image")).name
    if not (isinstance(box, list) and len(box) == 4):
        raise SourceError(f"{row.where}: the bbox is {box!r}; expected four numbers")
    if not (0 <= box[0] < box[2] <= width + 1 and 0 <= box[1] < box[3] <= height + 1):
        raise SourceError(
            f"{row.where}: the bbox {box} is none of x1, y1, x2, y2 in pixels of {width} x {height}"
        )
    return Item(
        id=f"{split}/{number}",
        prompt=prompt.fill(row.text("sent")),
        images=(image_file(images / name, folder),),
        truth=[box[0] / width, box[1] / height, box[2] / width, box[3] / height],
        cluster=f"{split}/{name}",
        stratum=split,
        groups=(split,),
        meta={"size": [width, height]},
    )


BENCHMARK = Benchmark(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg as boxes",
    files="refcoco_val.jsonl and the others of its eight splits as Qwen-VL has them (image, sent, "
    "bbox, width, height), or one of these; and the folder train2014/ of COCO 2014",
    questions=(sum(EXPRESSIONS.values()), VALIDATION, *EXPRESSIONS.values()),
    source="github.com/QwenLM/Qwen-VL (eval_mm), images.cocodataset.org (train2014)",
    licence="Apache-2.0 (refer), Flickr's terms (images)",
    rule="IoU of 0.5; boxes in shares of the image or thousandths (InternVL, evaluate_grounding.py)",
    prompts=PROMPTS["refcoco"],
    read=read,
    judge=judge,
    figures=figures,
    headline="mean of the splits",
    needs="boxes",
    other_rules={"boxes of the padded square (LLaVA)": judge_in_square},
)
