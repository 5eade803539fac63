#!/usr/bin/env python3
"""Check the scorers on answers that others published, whose scores are known.

    python tools/check_published_answers.py FOLDER

searches FOLDER (and the folders in it) for the files below, scores the answers in them by the rules of this package,
and compares with the published score. A clone of the repository that a file is in, or a copy of the file, will do.
Nothing is fetched, and none of these files is part of this project:

  llava_next_yi_34b_MMStar.xlsx   MMStar: github.com/MMStar-Benchmark/MMStar, eval/submits. The repository names no
                                  licence. Needs openpyxl: pip install openpyxl
  test_sqa_llava_*.json           ScienceQA: github.com/haotian-liu/LLaVA, llava/eval/table/results. Apache-2.0.
                                  The truths are not in them, so how each answer is read is compared
  SEED-Bench-1/GPT-4V.json        SEED-Bench: github.com/AILab-CVC/SEED-Bench, evaluate_result. Apache-2.0.
                                  Scored as seed:llava, on the questions about images
  saved_outputs/MODEL/TASK.json   BLINK val: github.com/zeyofu/BLINK_Benchmark, eval. Apache-2.0. Where the rule
                                  reads nothing, the authors asked GPT-3.5: its letter in the file is taken

Each line: questions; answers in which the rule reads nothing; those in which it reads something else than the file
says (- where the file does not say it); the score here; the published one; the difference. Exit status 0: all scores
agree, as far as the published one was rounded, or differ as is known and said; 1: one does not; 2: a file cannot be
read, or there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargo_ds.errors import SourceError
from pargo_ds.evaluation.benchmark import Answer, Benchmark, Item, Judgement
from pargo_ds.evaluation.benchmarks import BENCHMARKS, scienceqa
from pargo_ds.evaluation.benchmarks.files import read_json
from pargo_ds.evaluation.score import counted, estimates, judged

ROUNDING = 0.05
"""Published scores have one decimal place, so this much is rounding."""
SLACK = 1e-9
"""For the floating point of a difference that is ROUNDING itself."""


@dataclass(frozen=True)
class Scored:
    """What the rules here make of a file of answers; `score` in percent."""

    questions: int
    unread: int
    score: float
    otherwise: int | None = None
    """Answers in which something else is read than the file says; None where it does not say it."""


@dataclass(frozen=True)
class Published:
    """A file or folder of answers; `path` is how its path ends, `score` what its authors print."""

    path: str
    score: float
    read: Callable[[Path], Scored]
    here: float | None = None
    """The score here where it is known to be another one than `score`, with one decimal more."""
    why: str = ""
    """Why it is another one."""

    def agrees(self, score: float) -> bool:
        """Return whether a score is the published one, or the other one that is known."""
        if self.here is None:
            return abs(score - self.score) <= ROUNDING + SLACK
        return abs(score - self.here) <= ROUNDING / 10 + SLACK


def score_mmstar(path: Path) -> Scored:
    """Score a sheet of the authors' evaluation, with the columns answer and prediction."""
    items, answers = [], []
    for row in _sheet(path):
        number = str(_cell(row, "index", path))
        items.append(Item(id=number, prompt="", images=(), truth=str(_cell(row, "answer", path))))
        answers.append(Answer(id=number, text=str(_cell(row, "prediction", path))))
    return _scored(BENCHMARKS["mmstar"], items, answers)


def score_scienceqa(path: Path) -> Scored:
    """Score a file of LLaVA's eval_science_qa.py: `outputs`, the option that was read in each
    (`results`, -1 for none), and how many of them were right.

    The truths are not in it. An answer that is read otherwise here may have been right before, or be
    right now; the score is the one farther from the published one.
    """
    body = read_json(path)
    outputs, results = _cell(body, "outputs", path), _cell(body, "results", path)
    correct = int(_cell(body, "correct", path))
    unread = otherwise = 0
    for number, text in outputs.items():
        said = scienceqa.parse(text, len(scienceqa.KNOWN))
        unread += said is None
        otherwise += _option(said) != results[number]
    return Scored(len(outputs), unread, 100 * (correct - otherwise) / len(outputs), otherwise)


def _option(letter: str | None) -> int:
    """The place of an option as eval_science_qa.py writes it; -1 where nothing was read."""
    if letter is None:
        return -1
    return scienceqa.KNOWN.index(letter)


def score_seed(path: Path) -> Scored:
    """Score lines `{"question_id", "prediction", "gt_answer"},`; ids of videos begin with v."""
    items, answers = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        line = line.strip().removesuffix(",")
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SourceError(f"{path}, line {number} is no JSON ({error})") from error
        name = str(_cell(row, "question_id", path))
        if not name.startswith("v"):
            truth = _cell(row, "gt_answer", path)
            items.append(Item(id=name, prompt="", images=(), truth=truth, options=("",) * 4))
            answers.append(Answer(id=name, text=_cell(row, "prediction", path)))
    return _scored(BENCHMARKS["seed"], items, answers)


def score_blink(folder: Path) -> Scored:
    """Score a model's folder of TASK.json: `val` is a list of idx, answer, full_prediction (what
    the model said) and prediction (what the authors, or GPT-3.5, read in it).
    """
    benchmark = BENCHMARKS["blink"]
    items, answers, letters = [], [], []
    for path in sorted(folder.glob("*.json")):
        rows = _cell(read_json(path), "val", path)
        truths = {_cell(row, "answer", path) for row in rows}
        options = ("",) * (ord(max(truths)[1]) - ord("A") + 1)  # "(B)": it has two
        for row in rows:
            name = row["idx"]
            kind = {"truth": row["answer"], "options": options, "groups": (path.stem,)}
            items.append(Item(id=name, prompt="", images=(), cluster=name, **kind))
            answers.append(Answer(id=name, text=_cell(row, "full_prediction", path)))
            letters.append(_cell(row, "prediction", path))
    found = judged(benchmark.judge, items, answers)
    unread = otherwise = 0
    with_letters = []
    for item, judgement, letter in zip(items, found, letters, strict=True):
        if judgement.said is None:
            unread += 1
            judgement = Judgement(letter, float(letter == item.truth))
        otherwise += judgement.said != letter
        with_letters.append(judgement)
    return Scored(len(items), unread, _headline(benchmark, items, with_letters), otherwise)


def _scored(benchmark: Benchmark, items: Sequence[Item], answers: Sequence[Answer]) -> Scored:
    found = judged(benchmark.judge, items, answers)
    unread = sum(judgement.said is None for judgement in found)
    return Scored(len(items), unread, _headline(benchmark, items, found))


def _headline(benchmark: Benchmark, items: Sequence[Item], found: Sequence[Judgement]) -> float:
    figures = estimates(benchmark, counted(list(benchmark.marks(items, found))))
    return figures[benchmark.headline]


def _cell(row: Any, name: str, path: Path) -> Any:
    if not isinstance(row, dict) or row.get(name) is None:
        raise SourceError(f"{path} has no '{name}' where the published file has it; copy it anew")
    return row[name]


def _sheet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        import openpyxl
    except ImportError as error:
        raise SourceError(f"{path}: .xlsx files need openpyxl: pip install openpyxl") from error
    try:
        rows = openpyxl.load_workbook(path, read_only=True, data_only=True).active.values
        header, *cells = [list(row) for row in rows]
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise SourceError(f"{path} is no sheet that openpyxl reads ({error})") from error
    return [dict(zip(header, row, strict=True)) for row in cells]


LETTERS = "known: the file has (Z) for answers of one letter, which the authors' program reads"
OWN_LETTERS = "known: so say the letters in the file itself"
KNOWN = (
    Published("llava_next_yi_34b_MMStar.xlsx", 52.1, score_mmstar),
    Published("test_sqa_llava_13b_v0.json", 90.9, score_scienceqa),
    Published("test_sqa_llava_lcs_558k_sqa_12e_vicuna_v1_3_13b.json", 91.1, score_scienceqa),
    Published("SEED-Bench-1/GPT-4V.json", 69.1, score_seed),
    Published("saved_outputs/GPT4o", 60.0, score_blink),
    Published("saved_outputs/GPT4Turbo", 54.6, score_blink),
    Published("saved_outputs/GPT4V", 51.1, score_blink),
    Published("saved_outputs/GeminiProVision", 45.2, score_blink),
    Published("saved_outputs/llava-v1.6-34b", 46.8, score_blink),
    Published("saved_outputs/OPUS", 44.1, score_blink, here=44.05, why=OWN_LETTERS),
    Published("saved_outputs/Yi_VL_34B", 41.7, score_blink),
    Published("saved_outputs/QwenVLMax", 40.3, score_blink),
    Published("saved_outputs/llava-v1.5-13b-xtuner", 42.0, score_blink),
    Published("saved_outputs/Yi_VL_6B", 38.7, score_blink, here=38.78, why=LETTERS),
    Published("saved_outputs/llava-v1.5-7b-xtuner", 39.4, score_blink),
    Published("saved_outputs/llava_v1.5_13b", 42.7, score_blink),
    Published("saved_outputs/instructblip_13b", 42.2, score_blink),
    Published("saved_outputs/cogvlm-chat", 41.5, score_blink),
    Published("saved_outputs/instructblip_7b", 39.7, score_blink),
    Published("saved_outputs/flamingov2", 39.2, score_blink),
    Published("saved_outputs/llava_v1.5_7b", 37.1, score_blink),
    Published("saved_outputs/llava-internlm2-7b", 37.7, score_blink, here=37.77, why=LETTERS),
    Published("saved_outputs/MiniGPT-4-v2", 34.2, score_blink),
)
"""Scores: MMStar's eval/README.md; the files of ScienceQA themselves; SEED-Bench's leaderboard, as VLMEvalKit's
results/SEEDBench_IMG.md quotes it; the column Val of BLINK's README.md."""


def find(folder: Path) -> list[tuple[Published, Path]]:
    """Return the known files in a folder, in the order of KNOWN.

    Raises SourceError when there are none.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; expected one that holds published answers")
    found = []
    for published in KNOWN:
        found += [(published, path) for path in sorted(folder.rglob(published.path))]
    if not found:
        names = ", ".join(published.path for published in KNOWN[:4])
        raise SourceError(
            f"{folder} holds none of the files whose scores are known: {names}, "
            "saved_outputs/MODEL of BLINK; --help says where they come from"
        )
    return found


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to look")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, 1 when a score differs, 2 for what cannot be read."""
    options = parse_arguments(arguments)
    status = 0
    try:
        found = find(options.folder)
        print(f"{'':<54}{'questions':>9} unread other   here published difference")
        for published, path in found:
            status |= check(published, path)
    except SourceError as error:
        print(f"check_published_answers.py: error: {error}", file=sys.stderr)
        return 2
    return status


def check(published: Published, path: Path) -> int:
    """Print the line of one file. Return 0 when its score agrees, else 1."""
    scored = published.read(path)
    otherwise = "-"
    if scored.otherwise is not None:
        otherwise = str(scored.otherwise)
    line = f"{published.path:<54}{scored.questions:>9,}{scored.unread:>7}{otherwise:>6}"
    difference = round(scored.score - published.score, 2) + 0.0  # + 0.0 makes -0.0 a plain zero
    line += f"{scored.score:>7.2f}{published.score:>10.1f}{difference:>+11.2f}"
    agrees = published.agrees(scored.score)
    if not agrees:
        line += "   DIFFERS"
    elif published.why:
        line += f"   {published.why}"
    print(line)
    return int(not agrees)


if __name__ == "__main__":
    sys.exit(main())
