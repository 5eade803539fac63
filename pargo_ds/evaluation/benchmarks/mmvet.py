"""MM-Vet: open questions that need several capabilities at once; a judge grades the answers.

The official grades are GPT-4's, with the authors' prompt; the submission file goes to their
evaluator. Another judge or prompt makes another figure, so the table names both.
"""

from __future__ import annotations

import re
from pathlib import Path

from pargo_ds.evaluation.benchmark import (
    Answer,
    Benchmark,
    Grading,
    Item,
    Judgement,
    Prompt,
    images_of,
)
from pargo_ds.evaluation.benchmarks.files import (
    check_images,
    image_file,
    one_file,
    one_folder,
    read_json,
)
from pargo_ds.evaluation.benchmarks.prompts import PROMPTS

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
GRADE = """\
You grade an answer about an image that you cannot see. Compare it with the true answer, and give a \
grade from 0.0 (wholly wrong) to 1.0 (wholly right) in steps of 0.1.
In the true answer, <AND> joins parts that must all be present for 1.0 (some of them earn a share), \
and <OR> joins forms of which one suffices. Wording does not matter, meaning does.
Reply with the number alone.

Question: {question}
True answer: {truth}
Answer to grade: {answer}
Grade:"""
"""Our own wording, not the authors': figures compare with those by the same judge and prompt."""


def grade_of(text: str) -> float | None:
    """Return the one number from 0 to 1 in a judge's reply; None where there is none, or several."""
    found = [float(number) for number in NUMBER.findall(text)]
    if len(found) == 1 and 0 <= found[0] <= 1:
        return found[0]
    return None


def graded(item: Item, reply: str) -> Judgement:
    """The judge's grade."""
    grade = grade_of(reply)
    if grade is None:
        return Judgement(None, 0.0)
    return Judgement(reply, grade)


def spaced_truth(item: Item) -> str:
    """The truth as the authors' evaluator writes it, with blanks around <AND> and <OR>."""
    return str(item.truth).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")


def judge(item: Item, answer: Answer) -> Judgement:
    """No rule reads these answers."""
    return Judgement(None, 0.0)


def read(source: Path, prompt: Prompt) -> list[Item]:
    """Read mm-vet.json ({"v1_0": {"imagename", "question", "answer", "capability"}}) and images/."""
    path = one_file(source, "mm-vet.json")
    images = one_folder(path.parent, "images")
    items = []
    for name, entry in read_json(path).items():
        items.append(
            Item(
                id=name,
                prompt=prompt.fill(entry["question"]),
                images=(image_file(images / entry["imagename"], path.parent),),
                truth=entry["answer"],
                cluster=entry["imagename"],
                groups=tuple(entry["capability"]),
                meta={"question": entry["question"]},
            )
        )
    check_images(images_of(items), images)
    return items


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    files="mm-vet.json and the folder images/",
    questions=(218,),
    source="github.com/yuweihao/MM-Vet",
    licence="CC BY-NC 4.0",
    rule="grades of a judge (--judge); the official one is GPT-4 with the authors' prompt",
    prompts=PROMPTS["mmvet"],
    read=read,
    judge=judge,
    needs="judge",
    grading=Grading(name="grade_v1", text=GRADE, title="MM-Vet", truth=spaced_truth, read=graded),
)
