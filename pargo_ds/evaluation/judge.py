"""Answers graded by another model: what it is asked, and the record of its replies.

    OUT/NAME/judge/asked.json      which judge and which prompt; verdicts of another one are refused
    OUT/NAME/judge/verdicts.jsonl  a line for each graded answer, with the judge's own words

A grade belongs to a question and the text of an answer, so equal answers get equal grades in every
comparison. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Grading, Item, Judgement
from pargo_ds.evaluation.store import OtherAnswersError, Store, digest
from pargo_ds.files.whole_file import write_whole

FOLDER, ASKED, VERDICTS = "judge", "asked.json", "verdicts.jsonl"
PLACES = ("{question}", "{truth}", "{answer}")
WITHOUT_JUDGE = "by the rule without a judge"


def messages(grading: Grading, item: Item, answer: Answer) -> list[dict[str, str]]:
    """What the judge is asked about one answer, as turns of a chat."""
    values = {
        "{question}": item.meta["question"],
        "{truth}": grading.truth(item),
        "{answer}": answer.text,
    }
    # In one pass: an answer may hold such a place itself.
    text = re.sub("|".join(map(re.escape, PLACES)), lambda at: values[at[0]], grading.text)
    turns = [{"role": "system", "content": grading.system}] if grading.system else []
    return [*turns, {"role": "user", "content": text}]


def with_prompt(benchmark: Benchmark, path: Path) -> Grading:
    """The benchmark's grading, with the text of a file as its prompt.

    Raises UserError for a file without the three places, or a benchmark that no judge grades.
    """
    if benchmark.grading is None:
        raise UserError(f"--judge-prompt {benchmark.name}={path}: no judge grades {benchmark.name}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the judge's prompt cannot be read ({error})") from error
    missing = [place for place in PLACES if place not in text]
    if missing:
        raise UserError(f"{path}: the judge's prompt has no {', '.join(missing)} in it")
    return dataclasses.replace(benchmark.grading, name=path.name, text=text, system="")


@dataclass(frozen=True)
class Verdict:
    """What a judge said of one answer."""

    id: str
    answer: str
    raw: str
    """Its reply as it came; "" when it gave none, for the `reason`."""
    model: str = ""
    """The judge's name as it answered."""
    reason: str = ""


@dataclass(frozen=True)
class VerdictStore:
    """The verdicts on one benchmark's answers."""

    store: Store

    @property
    def folder(self) -> Path:
        """The place of the verdicts, inside of the answers' folder."""
        return self.store.folder / FOLDER

    def open(self, model: str, grading: Grading, settings: Mapping[str, Any]) -> None:
        """Note the judge, or compare it with the one before.

        Raises OtherAnswersError when it is another one.
        """
        words = "\n\n".join(filter(None, (grading.system, grading.text)))
        asked = {
            "model": model,
            "prompt": {"name": grading.name, "sha256": digest(words), "text": words},
            "settings": dict(settings),
        }
        if self.asked() is None:
            write_whole(self.folder / ASKED, json.dumps(asked, indent=2, ensure_ascii=False) + "\n")
        elif self.asked() != asked:
            before = self.asked() or {}
            raise OtherAnswersError(
                f"{self.folder} holds verdicts by {before['model']} with the prompt "
                f"{before['prompt']['name']} ({before['prompt']['sha256'][:12]}), or with other "
                "settings. Remove that folder to judge anew"
            )

    def asked(self) -> dict[str, Any] | None:
        """Return which judge it was; None when nothing was judged."""
        path = self.folder / ASKED
        if not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """Return the verdicts by question and answer. A last line that a kill cut is none."""
        path = self.folder / VERDICTS
        if not path.is_file():
            return {}
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        found = [Verdict(**json.loads(line)) for line in lines]
        return {(one.id, one.answer): one for one in found}

    def write(self, verdicts: Iterable[Verdict]) -> None:
        """Write all verdicts, whole; `add` puts further ones behind them."""
        lines = [_line(verdict) for verdict in verdicts]
        write_whole(self.folder / VERDICTS, "".join(lines))

    def add(self, verdict: Verdict) -> None:
        """Add one verdict, which is on the disk when this returns: it was paid for."""
        with (self.folder / VERDICTS).open("a", encoding="utf-8") as file:
            file.write(_line(verdict))
            file.flush()
            os.fsync(file.fileno())


def _line(verdict: Verdict) -> str:
    return json.dumps(asdict(verdict), ensure_ascii=False) + "\n"


def judged_benchmark(benchmark: Benchmark, stores: Sequence[Store]) -> Benchmark:
    """A benchmark that a judge can grade, with the verdicts in the stores as its rule; the same
    benchmark where no judge was asked, or not all answers have their verdict.

    Raises OtherAnswersError when the stores had different judges.
    """
    grading, verdict_stores = benchmark.grading, [VerdictStore(store) for store in stores]
    judges = [verdict_store.asked() for verdict_store in verdict_stores]
    if (
        grading is None
        or None in judges
        or any(answers_to_judge(verdict_store) for verdict_store in verdict_stores)
    ):
        return benchmark
    if any(judge != judges[0] for judge in judges):
        raise OtherAnswersError(
            f"{stores[0].folder} and {stores[-1].folder} were judged by different models or with "
            "different prompts; a difference would mean nothing"
        )
    verdicts: dict[tuple[str, str], Verdict] = {}
    for verdict_store in verdict_stores:
        verdicts |= verdict_store.verdicts()

    def rule(item: Item, answer: Answer) -> Judgement:
        raw = verdicts[item.id, answer.text].raw
        return grading.read(item, raw) if raw else Judgement(None, 0.0)

    lost = 0
    for verdict_store in verdict_stores:
        lost += sum(rule(*answered).said is None for answered in _answered(verdict_store))
    others = {} if benchmark.needs == "judge" else {WITHOUT_JUDGE: benchmark.judge}
    return dataclasses.replace(
        benchmark,
        title=grading.title,
        judge=rule,
        rule=_said(judges[0] or {}, verdicts, lost),
        needs="",
        other_rules=others,
    )


def _answered(verdict_store: VerdictStore) -> list[tuple[Item, Answer]]:
    items = verdict_store.store.items()
    answers, _ = verdict_store.store.answers(items)
    return list(zip(items, answers, strict=True))


def answers_to_judge(verdict_store: VerdictStore) -> list[tuple[Item, Answer]]:
    """Answers without a verdict. Raises as `Store.answers` does."""
    known = verdict_store.verdicts()
    return [pair for pair in _answered(verdict_store) if (pair[0].id, pair[1].text) not in known]


def _said(asked: Mapping[str, Any], verdicts: Mapping[tuple[str, str], Verdict], lost: int) -> str:
    """Which judge it was, for the table: never left out."""
    answered = sorted({verdict.model for verdict in verdicts.values() if verdict.model})
    prompt = asked["prompt"]
    return (
        f"graded by {asked['model']} (answered as {', '.join(answered) or 'nobody'}), prompt "
        f"{prompt['name']} {prompt['sha256'][:12]}; {lost} answers could not be judged and count 0"
    )
