"""tools/write_easy_vqa.py on a package of the same shape as easy-vqa 1.0."""

from __future__ import annotations

import json
import os
import sys

from tiny import COLOURS, ROOT, draw, run_command

from pargo_ds.evaluation.benchmark import Prompt
from pargo_ds.evaluation.benchmarks import mme

PACKAGE = """
import json, pathlib
HERE = pathlib.Path(__file__).parent
def get_test_questions():
    return json.loads((HERE / "questions.json").read_text())
def get_test_image_paths():
    return {int(path.stem): str(path) for path in HERE.glob("*.png")}
"""
QUESTIONS = [
    ("what shape is it?", "circle", 0), ("is there a circle?", "yes", 0), ("is no circle present?", "no", 0),
    ("is there a red shape?", "yes", 0), ("is there a blue shape?", "no", 0), ("is a teal shape present?", "no", 0),
    ("is there a circle?", "yes", 1), ("is there a red shape?", "no", 1), ("is there a teal shape?", "yes", 1),
    ("is there a triangle?", "yes", 2), ("is there a circle?", "yes", 2),  # no pair
    ("is there a triangle?", "no", 3), ("is there a circle?", "yes", 3),
]  # fmt: skip


def test_the_folder_is_one_of_mme_with_a_yes_and_a_no_for_each_image(tmp_path):
    package = tmp_path / "easy_vqa"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    columns = [list(column) for column in zip(*QUESTIONS, strict=True)]
    (package / "questions.json").write_text(json.dumps(columns))
    for number in range(4):
        (package / f"{number}.png").write_bytes(draw(COLOURS[number], number))
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/write_easy_vqa.py"), str(out)]
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    process = run_command(command, PYTHONPATH=path)
    assert process.returncode == 0, process.stderr
    assert "6 questions about 3 images, 1 of color, 2 of existence" in process.stdout
    items = mme.read(out, Prompt())
    assert {(item.id, item.truth, item.prompt.split("\n")[1]) for item in items} == {
        ("existence/0000/1", "yes", "Is there a circle? Please answer yes or no."),
        ("existence/0000/2", "no", "Is no circle present? Please answer yes or no."),
        ("color/0001/1", "yes", "Is there a teal shape? Please answer yes or no."),
        ("color/0001/2", "no", "Is there a red shape? Please answer yes or no."),
        ("existence/0003/1", "yes", "Is there a circle? Please answer yes or no."),
        ("existence/0003/2", "no", "Is there a triangle? Please answer yes or no."),
    }
    again = run_command(command, PYTHONPATH=path)
    assert again.returncode == 2
    assert f"{out} is there; remove it" in again.stderr
