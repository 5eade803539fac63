"""HallusionBench: yes/no questions about true and edited figures.

The official rule asks GPT-4 whether an answer conflicts with the reference (`--judge`). Without a
judge, answers are read as VLMEvalKit reads them then: the words yes and no, one of them alone. aAcc
of questions; fAcc: all of a figure; qAcc: a question about all its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pargo_ds.errors import SourceError, UserError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Grading,
    ImageRef,
    Item,
    Judgement,
    Mark,
    Prompt,
    Totals,
    all_right_marks,
    images_of,
)
from pargo_ds.evaluation.benchmarks.choice import only_one, same
from pargo_ds.evaluation.benchmarks.files import (
    Row,
    check_images,
    image_file,
    is_table,
    one_file,
    read_json,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS
from pargo_ds.evaluation.benchmarks.vqa_text import without_punctuation

PROMPT = (
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and "
    "the prediction answer to ensure a clear understanding of the information provided. Assess the "
    "correctness of the predictions. If the prediction answer does not conflict with the reference "
    "answer, please generate “correct”. If the prediction answer conflict with the reference "
    "answer, please generate “incorrect”. If the prediction answer is unclear about the answer, "
    'please generate "unclear". \n\n Question:{question}\nReference answer: {truth}\n'
    "Prediction answer:{answer}\nOutput:"
)
TRUTHS = {"0": "no", "1": "yes", "no": "no", "yes": "yes"}


def parse(answer: str) -> str | None:
    """Return "yes" or "no" when exactly one of them is a word of the answer."""
    words = without_punctuation(answer.lower()).split()
    found = [word for word in ("yes", "no") if word in words]
    return only_one(found)


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge by VLMEvalKit's rule without its GPT."""
    return same(parse(answer.text), item)


def reference(item: Item) -> str:
    """The reference answer. Raises UserError where the files had none."""
    if not item.meta["details"]:
        raise UserError(
            f"HallusionBench, question {item.id}: the files had no gt_answer_details, which the "
            "judge's prompt needs; ask with the authors' HallusionBench.json"
        )
    return item.meta["details"]


def graded(item: Item, reply: str) -> Judgement:
    """The authors' reading: "incorrect" or "correct" anywhere in the reply, else "unclear", which is
    right where there is no figure to know it from.
    """
    text = reply.lower()
    found = [word for word in ("incorrect", "correct") if word in text]
    said = found[0] if found else "unclear"
    return Judgement(said, float(said == "correct" or (said == "unclear" and not item.images)))


def marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield the marks of aAcc by item, fAcc by figure, qAcc by question; a set of figures is drawn
    as a whole.
    """
    for item, judgement in zip(items, judged, strict=True):
        yield Mark("aAcc", judgement.right, item)
    shown = [pair for pair in zip(items, judged, strict=True) if pair[0].meta["figure"]]
    yield from all_right_marks(
        [item for item, _ in shown],
        [judgement for _, judgement in shown],
        lambda item: item.meta["figure"],
        lambda item: ["fAcc"],
    )
    yield from all_right_marks(
        items, judged, lambda item: item.meta["of_all_figures"], lambda item: ["qAcc"]
    )


def figures(totals: Totals) -> dict[str, np.ndarray]:
    """Return the figures in percent."""
    return {name: 100 * totals.mean(name) for name in ("aAcc", "fAcc", "qAcc")}


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read HallusionBench.json beside its images (VD/, VS/), or VLMEvalKit's HallusionBench.tsv."""
    if is_table(source):
        return _from_table(source, prompt)
    path = one_file(source, "HallusionBench.json")
    folder = path.parent
    if (folder / "hallusion_bench").is_dir():
        folder = folder / "hallusion_bench"
    items = []
    for entry in read_json(path):
        image = None
        if str(entry["visual_input"]) != "0":
            place = folder / entry["category"] / entry["subcategory"]
            name = f"{entry['set_id']}_{entry['figure_id']}.png"
            image = image_file(place / name, path.parent)
        parts = {key: str(entry[key]) for key in (*KEYS, "visual_input")}
        row = Row(f"{path}, question {'_'.join(parts.values())}", entry)
        items.append(_item(parts, row, row.text("gt_answer"), image, prompt))
    check_images(images_of(items), folder)
    return items


KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


def _from_table(source: Path, prompt: Prompt) -> list[Item]:
    items = []
    for row in read_rows(source):
        fields = row.text("index").split("_")
        if len(fields) != 6:
            raise SourceError(
                f"{row.where}: index {row.text('index')!r}; expected e.g. VD_figure_0_1_2_3"
            )
        # The third field is visual_input; VLMEvalKit takes the index apart in the same way.
        parts = dict(zip(KEYS, [*fields[:2], *fields[3:]], strict=True))
        parts["visual_input"] = fields[2]
        items.append(_item(parts, row, row.text("answer"), row.image(), prompt))
    return items


def _item(
    parts: dict[str, str], row: Row, truth: str, image: ImageRef | None, prompt: Prompt
) -> Item:
    if truth.lower() not in TRUTHS:
        raise SourceError(f"{row.where}: gt_answer {truth!r}; expected 0 or 1, or Yes or No")
    cluster = "/".join(parts[key] for key in KEYS[:3])
    images: tuple[ImageRef, ...] = ()
    figure = ""
    if image is not None:
        images, figure = (image,), f"{cluster}/{parts['figure_id']}"
    return Item(
        id="_".join(parts[key] for key in KEYS),
        prompt=prompt.fill(row.text("question"), images=len(images)),
        images=images,
        truth=TRUTHS[truth.lower()],
        cluster=cluster,
        groups=(parts["category"],),
        meta={
            "figure": figure,
            "of_all_figures": f"{cluster}/{parts['question_id']}",
            "question": row.text("question"),
            "details": row.get("gt_answer_details"),
            "parts": parts,
        },
    )


BENCHMARK = Benchmark(
    name="hallusion",
    title="HallusionBench, by words",
    files="HallusionBench.json and its folders VD/ and VS/, or VLMEvalKit's HallusionBench.tsv",
    questions=(1129, 951),
    source="github.com/tianyi-lab/HallusionBench",
    licence="BSD-3-Clause",
    rule="yes or no as a word (VLMEvalKit); the official rule asks GPT-4: --judge",
    prompts=PROMPTS["hallusion"],
    read=read,
    judge=judge,
    marks=marks,
    figures=figures,
    headline="aAcc",
    grading=Grading(
        name="HallusionBench's utils.py",
        title="HallusionBench, by a judge",
        text=PROMPT,
        truth=reference,
        read=graded,
    ),
)
