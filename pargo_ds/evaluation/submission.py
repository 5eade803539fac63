"""Answers -> the files that evaluation servers and official programs take. Imports no torch.

Of a benchmark that has a form here; the table of `FORMS` says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Item
from pargo_ds.evaluation.benchmarks.vqa_text import evalai
from pargo_ds.evaluation.score import stores_in
from pargo_ds.files.whole_file import write_whole

Form = Callable[[Sequence[Item], Sequence[Answer]], dict[str, str]]


def vqa(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """Return EvalAI's results.json of VQAv2 and TextVQA: answers as the EvalAI processor writes
    them.
    """
    rows = []
    for item, answer in zip(items, answers, strict=True):
        rows.append({"question_id": _number(item.id), "answer": evalai(answer.text)})
    return {"results.json": _json(rows)}


def gqa(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """Return what eval.py of GQA reads: lower case, no final full stop (LLaVA)."""
    rows = []
    for item, answer in zip(items, answers, strict=True):
        rows.append({"questionId": item.id, "prediction": answer.text.rstrip(".").lower()})
    return {"testdev_balanced_predictions.json": _json(rows)}


def mmvet(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """Return what MM-Vet's online evaluator takes: one object, question -> answer."""
    said = {item.id: answer.text for item, answer in zip(items, answers, strict=True)}
    return {"results.json": _json(said)}


def mmvp(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """What gpt_grader.py of MMVP reads: a line for each question, two adjacent ones a pair."""
    lines = []
    for item, answer in zip(items, answers, strict=True):
        said = {"prompt": item.meta["question"], "answer": item.truth, "response": answer.text}
        lines.append(_json({"question_id": _number(item.id), **said}))
    return {"answer.jsonl": "".join(lines)}


def hallusion(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """What evaluation.py of HallusionBench reads: the entries with `model_prediction`."""
    rows = [
        {
            **item.meta["parts"],
            "question": item.meta["question"],
            "gt_answer_details": item.meta["details"],
            "gt_answer": str(int(item.truth == "yes")),
            "model_prediction": answer.text,
        }
        for item, answer in zip(items, answers, strict=True)
    ]
    return {"HallusionBench_result.json": _json(rows)}


def mme(items: Sequence[Item], answers: Sequence[Answer]) -> dict[str, str]:
    """Return what calculation.py of MME reads: TASK.txt, lines of image, question, truth, answer
    between tabs.
    """
    lines: dict[str, list[str]] = {}
    for item, answer in zip(items, answers, strict=True):
        name = item.images[0].name.rpartition("/")[2]
        question, said = _one_line(item.meta["question"]), _one_line(answer.text)
        line = "\t".join([name, question, item.truth.capitalize(), said])
        lines.setdefault(item.stratum, []).append(line + "\n")
    return {f"{task}.txt": "".join(found) for task, found in lines.items()}


FORMS: dict[str, Form] = {
    "vqav2": vqa, "vqav2test": vqa, "textvqa": vqa, "gqa": gqa, "mmvet": mmvet, "mmvp": mmvp,
    "hallusion": hallusion, "mme": mme,
}  # fmt: skip


def write_submissions(out: Path) -> list[Path]:
    """Write OUT/NAME/submission/FILE for every benchmark there that has a form; returns the files.

    Raises UserError when none has one, MissingAnswersError while answers are missing.
    """
    stores = {name: store for name, store in stores_in(out).items() if name in FORMS}
    if not stores:
        raise UserError(f"{out} holds answers to none of {', '.join(FORMS)}, which have a form")
    written = []
    for name, store in stores.items():
        items = store.items()
        answers, _ = store.answers(items)
        for file, text in FORMS[name](items, answers).items():
            written.append(store.folder / "submission" / file)
            write_whole(written[-1], text)
    return written


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _number(name: str) -> int | str:
    """The id as a number where it is one, as the servers want it."""
    if name.isdecimal():
        return int(name)
    return name


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
