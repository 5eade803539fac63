"""scikit-image's photographs with true questions, as an MME folder and as POPE's files: read, asked, scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from caption_photos import photograph

from pargo_ds.evaluation import ask
from pargo_ds.evaluation.benchmark import Prompt, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.benchmarks.pope import SPLITS
from pargo_ds.evaluation.score import score_folder
from pargo_ds.evaluation.store import Store

PAIRS = {
    ("existence", "astronaut.png"): ("Is there a person in this image?", "Is there a dog in this image?"),
    ("existence", "chelsea.png"): ("Is there a cat in this image?", "Is there a bicycle in this image?"),
    ("existence", "coffee.png"): ("Is there a spoon in this image?", "Is there a fork in this image?"),
    ("existence", "rocket.jpg"): ("Is there a rocket in this image?", "Is there a boat in this image?"),
    ("existence", "camera.png"): ("Is there a tripod in this image?", "Is there a horse in this image?"),
    ("existence", "motorcycle_left.png"): ("Is there a bench in this image?", "Is there a cow in this image?"),
    ("existence", "coins.png"): ("Is there a coin in this image?", "Is there a banana in this image?"),
    ("count", "astronaut.png"): ("Is there one person in this image?", "Are there three people in this image?"),
    ("count", "chelsea.png"): ("Are there two eyes in this image?", "Are there five eyes in this image?"),
    ("count", "coins.png"): ("Are there 24 coins in this image?", "Are there ten coins in this image?"),
    ("count", "coffee.png"): ("Is there one cup in this image?", "Are there four cups in this image?"),
    ("color", "astronaut.png"): ("Is the suit orange?", "Is the suit green?"),
    ("color", "motorcycle_left.png"): ("Is there a red motorcycle?", "Is there a yellow motorcycle?"),
    ("color", "chelsea.png"): ("Are the eyes of the cat green?", "Is the cat black all over?"),
    ("position", "astronaut.png"): ("Is the flag on the left?", "Is the flag on the right?"),
    ("position", "camera.png"): ("Is the camera on the right of the head?", "Is the camera below the feet?"),
    ("scene", "rocket.jpg"): ("Is this photograph taken outdoors?", "Is this photograph taken in a kitchen?"),
    ("scene", "camera.png"): ("Does this image show a lawn?", "Does this image show a beach?"),
    ("OCR", "page.png"): ('Is "segmentation" written in this image?', 'Is "elephant" written in this image?'),
    ("OCR", "motorcycle_left.png"): ('Is "YAMAHA" written in this image?', 'Is "HONDA" written in this image?'),
}  # fmt: skip
"""(MME's task, photograph) -> a question with yes and one with no. Each was written while looking at the photograph."""
WRONG = {
    "Is there a spoon in this image?": "no",
    "Are there ten coins in this image?": "Yes, there are.",
    "Are the eyes of the cat green?": "No",
    "Is the cat black all over?": "yes",
}
"""What is said to four questions; the truth is said to all others."""
ENDING = "Please answer yes or no."


def write_mme(folder: Path) -> Path:
    for (task, name), questions in PAIRS.items():
        (folder / task).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photograph(name), folder / task / name)
        lines = [
            f"{text} {ENDING}\t{truth}\n"
            for text, truth in zip(questions, ("Yes", "No"), strict=True)
        ]
        (folder / task / name).with_suffix(".txt").write_text("".join(lines))
    return folder


def write_pope(folder: Path) -> Path:
    """The questions whether a thing is there, the same ones in each split."""
    rows = []
    (folder / "val2014").mkdir(parents=True)
    for (task, name), questions in PAIRS.items():
        if task == "existence":
            shutil.copyfile(photograph(name), folder / "val2014" / name)
            for text, label in zip(questions, ("yes", "no"), strict=True):
                rows.append(
                    {"question_id": len(rows) + 1, "image": name, "text": text, "label": label}
                )
    for split in SPLITS:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(text)
    return folder


def say(store: Store) -> None:
    """Put the truth, but for WRONG, in the place of what the tiny model said."""
    items = {item.id: item for item in store.items()}
    for path in (store.folder / "units").iterdir():
        head, *answers = path.read_text().splitlines()
        lines = [head]
        for line in answers:
            answer = json.loads(line)
            item = items[answer["id"]]
            wrong = [said for text, said in WRONG.items() if text in item.prompt]
            lines.append(json.dumps({**answer, "text": [*wrong, item.truth][0]}))
        path.write_text("\n".join(lines) + "\n")


def asked_of(model, processor, name: str, source: Path, out: Path) -> Store:
    """Ask a benchmark's questions of a model, as tools/evaluate.py does."""
    benchmark, prompt = BENCHMARKS[name], Prompt(max_new_tokens=3)
    items = read_items(benchmark, source, prompt, subset=True)
    settings = ask.AskSettings(rows=16, tokens=4000)
    units = ask.plan(processor, items, prompt, settings)
    store = Store(out / name)
    marks = ask.fingerprint(
        "0" * 64, model, processor, items, units, benchmark, "official", settings
    )
    store.open(marks, items)
    load = ask.image_loader(items, settings.images)
    ask.ask(model, processor, items, units, prompt, store, load=load, rank=0, ranks=1)
    return store


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("photographs")
    return {"mme": write_mme(folder / "mme"), "pope": write_pope(folder / "pope")}


def test_photographs_are_asked_about_and_scored_by_mmes_pairs(folders, model, processor, tmp_path):
    store = asked_of(model, processor, "mme", folders["mme"], tmp_path)
    first = score_folder(tmp_path)["mme"]
    assert (first["asked"], first["clusters"]) == (40, 20)
    say(store)
    scores = score_folder(tmp_path)["mme"]
    found = {name: each["value"] for name, each in scores["figures"].items()}
    # By hand: 100 x accuracy + 100 x pairs with both right.
    assert found["existence"] == pytest.approx(100 * 13 / 14 + 100 * 6 / 7)
    assert found["count"] == pytest.approx(100 * 7 / 8 + 100 * 3 / 4)
    assert found["color"] == pytest.approx(100 * 4 / 6 + 100 * 2 / 3)  # both of one pair are wrong
    assert found["position"] == found["scene"] == found["OCR"] == 200
    assert found["total"] == pytest.approx(178.5714 + 162.5 + 133.3333 + 600, abs=1e-3)
    assert scores["yes"] == pytest.approx(20 / 40)  # two became yes, two became no


def test_photographs_are_asked_about_and_scored_by_popes_rule(folders, model, processor, tmp_path):
    store = asked_of(model, processor, "pope", folders["pope"], tmp_path)
    first = score_folder(tmp_path)["pope"]
    assert (first["asked"], first["clusters"]) == (42, 7)
    say(store)
    found = {
        name: each["value"] for name, each in score_folder(tmp_path)["pope"]["figures"].items()
    }
    # By hand: of 14 questions seven are yes, of which the spoon is denied.
    for split in SPLITS:
        assert found[f"{split} yes-ratio"] == pytest.approx(100 * 6 / 14)
        assert found[f"{split} accuracy"] == pytest.approx(100 * 13 / 14)
        assert found[f"{split} precision"] == 100
        assert found[f"{split} recall"] == pytest.approx(100 * 6 / 7)
    assert found["mean F1"] == pytest.approx(100 * 2 * 6 / (2 * 6 + 1))


def test_an_mme_photograph_with_one_question_is_refused(folders, tmp_path):
    shutil.copytree(folders["mme"], tmp_path / "mme")
    path = tmp_path / "mme" / "OCR" / "page.txt"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"1 images do not have two questions: OCR/page \(1\)"):
        read_items(BENCHMARKS["mme"], tmp_path / "mme", Prompt(), subset=True)
