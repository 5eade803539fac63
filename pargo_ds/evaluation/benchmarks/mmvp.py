"""MMVP: 150 pairs of images that CLIP takes for the same; a pair counts when both are right.

The official rule asks GPT-4 whether an answer is right (`--judge`); without a judge the letter is
read. Four truths of the original files are wrong and corrected in the copy lmms-lab-eval/MMVP: the
table names the copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Grading,
    Item,
    Judgement,
    Mark,
    Prompt,
    accuracy_marks,
    all_right_marks,
)
from pargo_ds.evaluation.benchmarks.choice import only_one, same
from pargo_ds.evaluation.benchmarks.files import (
    ImageRef,
    Row,
    check_images,
    image_file,
    is_table,
    one_folder,
    read_csv,
    read_rows,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

DISPUTED, ORIGINAL = 99, "(a)"
"""The first of the questions 99, 100, 279, 280, and its truth in the original files."""
OFFICIAL = Grading(
    name="MMVP's gpt_grader.py",
    title="MMVP, by a judge",
    system="You are a helpful and precise assistant for checking the quality of the answer. Please "
    "answer in only yes or no.",
    text="Given the following question {question}, the correct answer is {truth}. Does the "
    "following answer correctly answers the question, answer:{answer}?",
    truth=lambda item: str(item.truth),
    read=lambda item, reply: graded(reply),
)
OPTION = re.compile(r"\(([ab])\)\s*([^(]*)", flags=re.IGNORECASE)


def parse(answer: str, options: Sequence[str]) -> str | None:
    """Return "(a)" or "(b)": the one letter in parentheses, a letter alone or first, or an option's
    own text.
    """
    text = answer.strip()
    found = set(re.findall(r"\(([ab])\)", text.lower()))
    if found:
        return _in_parentheses(only_one(list(found)))
    alone = re.match(r"([abAB])(?:[.):]|$)", text)
    if alone:
        return f"({alone[1].lower()})"
    plain = text.lower().rstrip(".")
    said = ["ab"[place] for place, option in enumerate(options) if plain == option.lower()]
    return _in_parentheses(only_one(said))


def _in_parentheses(letter: str | None) -> str | None:
    if letter is None:
        return None
    return f"({letter})"


def judge(item: Item, answer: Answer) -> Judgement:
    """Judge the letter."""
    return same(parse(answer.text, item.options), item)


def graded(reply: str) -> Judgement:
    """The authors' reading: the whole reply is yes or no; any other one is not right."""
    text = reply.strip().lower()
    if text not in ("yes", "no"):
        return Judgement(None, 0.0)
    return Judgement(text, float(text == "yes"))


def marks(items: Sequence[Item], judged: Sequence[Judgement]) -> Iterable[Mark]:
    """Yield the marks of pairs, then those of single questions, these also under the copy's name."""
    yield from all_right_marks(items, judged, lambda item: item.cluster, lambda item: ["pairs"])
    names = {"overall": "questions"}
    for mark in accuracy_marks(items, judged):
        yield Mark(names.get(mark.name, mark.name), mark.value, mark.item)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read Questions.csv and "MMVP Images/N.jpg"; or a table with the same columns and an image."""
    if is_table(source):
        entries = [(row, row.image()) for row in read_rows(source)]
    else:
        images = one_folder(source, "MMVP Images", "MMVP_Images", "images")
        entries = []
        for number, row in enumerate(read_csv(source / "Questions.csv"), start=1):
            entries.append((row, image_file(images / f"{number}.jpg", source)))
        check_images((image for _, image in entries), images)
    if len(entries) % 2:
        raise SourceError(f"{source} holds {len(entries)} questions; MMVP has pairs")
    truths = [_truth(row) for row, _ in entries]
    original = len(truths) < DISPUTED or truths[DISPUTED - 1] == ORIGINAL
    copy = "original truths" if original else "corrected truths"
    items = []
    for number, (row, image) in enumerate(entries):
        items.append(_item(number, row, image, truths[number], copy, prompt))
    return items


def _truth(row: Row) -> str:
    truth = (row.get("Correct Answer") or row.text("answer")).lower()
    if not truth.startswith("("):
        truth = f"({truth})"
    if truth not in ("(a)", "(b)"):
        raise SourceError(f"{row.where}: the answer is {truth!r}; expected (a) or (b)")
    return truth


def _item(number: int, row: Row, image: ImageRef, truth: str, copy: str, prompt: Prompt) -> Item:
    options = row.get("Options") or f"(a) {row.text('A')} (b) {row.text('B')}"
    question = row.get("Question") or row.text("question")
    return Item(
        id=str(number + 1),
        prompt=prompt.fill(question, hint=options),
        images=(image,),
        truth=truth,
        options=tuple(text.strip() for _, text in OPTION.findall(options)),
        cluster=f"pair {number // 2 + 1}",
        groups=(copy,),
        meta={"question": f"{question} {options}"},
    )


BENCHMARK = Benchmark(
    name="mmvp",
    title="MMVP, by letters",
    files='Questions.csv and the folder "MMVP Images/", or a TSV or Parquet copy',
    questions=(300,),
    source="hf.co/datasets/MMVP/MMVP, corrected: hf.co/datasets/lmms-lab-eval/MMVP",
    licence="MIT",
    rule="the letter; the official rule asks GPT-4: --judge",
    prompts=PROMPTS["mmvp"],
    read=read,
    judge=judge,
    marks=marks,
    headline="pairs",
    grading=OFFICIAL,
)
