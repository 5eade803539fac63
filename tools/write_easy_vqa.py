#!/usr/bin/env python3
"""Write easy-VQA's test images as an MME folder: a small benchmark with true answers, from PyPI.

    pip install --no-deps easy-vqa==1.0        # MIT, 3 MB
    python tools/write_easy_vqa.py data/easy_vqa --images 200
    python tools/evaluate.py EXPORT --benchmark mme=data/easy_vqa --subset --out OUT

Its images are 64 pixels wide and show one coloured shape. Each one gets a question with yes and one with no, of the
task `existence` (the shape) or `color`, the first ones of easy-VQA's file; tasks take turns where they can.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SHAPE = re.compile("circle|rectangle|triangle")
ENDING = "Please answer yes or no."

Pair = dict[str, str]
"""A question for each answer, yes and no."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many (default: all)")
    return parser.parse_args(arguments)


def pairs_of(
    questions: Sequence[str], answers: Sequence[str], images: Sequence[int]
) -> dict[int, dict[str, Pair]]:
    """Return for each image and task the first question with yes and the first with no, where there
    are both.
    """
    found: dict[int, dict[str, Pair]] = {}
    for question, answer, image in zip(questions, answers, images, strict=True):
        if answer in ("yes", "no"):
            task = "existence" if SHAPE.search(question) else "color"
            found.setdefault(image, {}).setdefault(task, {}).setdefault(answer, question)
    whole = {}
    for image, tasks in sorted(found.items()):
        whole[image] = {task: pair for task, pair in tasks.items() if len(pair) == 2}
    return whole


def choose(pairs: Mapping[int, Mapping[str, Pair]], most: int | None) -> dict[int, str]:
    """Return the task of each image, the one that has fewer so far; at most `most` images."""
    chosen: dict[int, str] = {}
    for image, tasks in pairs.items():
        if tasks and (most is None or len(chosen) < most):
            given = list(chosen.values())
            chosen[image] = min(tasks, key=given.count)
    return chosen


def write(
    out: Path, pairs: Mapping[int, Mapping[str, Pair]], chosen: Mapping[int, str],
    paths: Mapping[int, str],
) -> None:  # fmt: skip
    """Write TASK/IMAGE.png and TASK/IMAGE.txt of each chosen image."""
    for image, task in chosen.items():
        (out / task).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths[image], out / task / f"{image:04d}.png")
        text = ""
        for answer in ("yes", "no"):
            question = pairs[image][task][answer].capitalize()
            text += f"{question} {ENDING}\t{answer.capitalize()}\n"
        (out / task / f"{image:04d}.txt").write_text(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0, or 2 when the folder is there or the package is not."""
    options = parse_arguments(arguments)
    if options.out.exists():
        print(f"write_easy_vqa.py: error: {options.out} is there; remove it", file=sys.stderr)
        return 2
    try:
        import easy_vqa
    except ImportError:
        print(
            "write_easy_vqa.py: error: the package easy_vqa is missing: pip install --no-deps easy-vqa==1.0",
            file=sys.stderr,
        )
        return 2
    pairs = pairs_of(*easy_vqa.get_test_questions())
    chosen = choose(pairs, options.images)
    write(options.out, pairs, chosen, easy_vqa.get_test_image_paths())
    tasks = list(chosen.values())
    numbers = ", ".join(f"{tasks.count(task)} of {task}" for task in sorted(set(tasks)))
    print(f"{options.out}: {2 * len(tasks)} questions about {len(tasks)} images, {numbers}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
