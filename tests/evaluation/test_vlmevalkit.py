"""Predictions for VLMEvalKit: its TSV without images, with what was said."""

from __future__ import annotations

import sys

import official_layouts as layouts
import pytest
from tiny import ROOT, run_command

from pargo_ds.errors import UserError
from pargo_ds.evaluation.benchmark import Answer, read_items
from pargo_ds.evaluation.benchmarks import BENCHMARKS
from pargo_ds.evaluation.store import OtherAnswersError, Store, digest, item_lines
from pargo_ds.evaluation.vlmevalkit import write_predictions

READ_BY_ITS_EVALUATION = {
    # vlmeval/dataset/image_mcq.py and utils/multiple_choice.py
    "mmbench": ("index", "question", "prediction", "answer", "A", "B", "category", "split"),
    # vlmeval/dataset/image_yorn.py and utils/yorn.py
    "mme": ("index", "prediction", "answer", "category", "image_path"),
    "pope": ("index", "prediction", "answer", "category"),
}
"""Read in VLMEvalKit as of August 2026."""


def table_of(name: str, folder):
    if name == "mmbench":
        return layouts.mmbench(folder)
    rows = [
        {
            "index": number,
            "image": layouts.base64_image(number // 2),
            "question": 'Is it "red"?\nPlease answer yes or no.',
            "answer": "No" if number % 2 else "Yes",
            "category": "color" if name == "mme" else "random,adversarial",
            "image_path": f"color/{number // 2}.png",
        }
        for number in range(4)
    ]
    return layouts.write_tsv(folder / f"{name.upper()}.tsv", rows)


def answered(out, name: str, table, prompt: str = "") -> Store:
    benchmark = BENCHMARKS[name]
    prompt = prompt or next(iter(benchmark.prompts))
    items = read_items(benchmark, table, benchmark.prompts[prompt], subset=True)
    store = Store(out / name)
    asked = {"questions": digest(item_lines(items)), "units": 1, "prompt": {"name": prompt}}
    store.open(asked, items)
    texts = {item.cluster: f'Yes,\tit\nis \u2028 "{item.cluster}"' for item in items}
    store.write(0, {}, [Answer(id=item.id, text=texts[item.cluster]) for item in items])
    return store


@pytest.mark.parametrize("name", READ_BY_ITS_EVALUATION)
def test_pandas_reads_the_columns_that_vlmevalkits_evaluation_needs(name, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = table_of(name, tmp_path)
    store = answered(tmp_path / "out", name, table)
    (path,) = write_predictions(tmp_path / "out", {name: table}, "pargo")
    assert path == store.folder / f"vlmevalkit/pargo_{table.stem}.tsv"
    # As its `load` does.
    found, official = pandas.read_csv(path, sep="\t"), pandas.read_csv(table, sep="\t")
    assert set(READ_BY_ITS_EVALUATION[name]) <= set(found.columns)
    assert [*found.columns] == [*official.columns.drop("image"), "prediction"]
    pandas.testing.assert_frame_equal(
        found.drop(columns="prediction"), official.drop(columns="image")
    )
    items = {item.id.rpartition("/")[2]: item for item in store.items()}
    for place, row in enumerate(found.to_dict("records")):
        index = str(row["index"]) if name != "mme" else str(place % 2 + 1)
        cluster = items[index].cluster if name != "mme" else f"color/{place // 2}"
        assert row["prediction"] == f'Yes,\tit\nis \u2028 "{cluster}"'


def test_other_questions_losses_and_other_files_are_refused(tmp_path):
    table = table_of("mme", tmp_path)
    answered(tmp_path / "out", "mme", table)
    with pytest.raises(UserError, match="holds no answers to pope; it has mme"):
        write_predictions(tmp_path / "out", {"pope": table}, "pargo")
    with pytest.raises(UserError, match="expected VLMEvalKit's .tsv of mme"):
        write_predictions(tmp_path / "out", {"mme": layouts.mme(tmp_path / "MME")}, "pargo")
    table.write_text(table.read_text().replace("\tNo\t", "\tYes\t"))
    with pytest.raises(OtherAnswersError, match="not the same ones"):
        write_predictions(tmp_path / "out", {"mme": table}, "pargo")
    seed = layouts.seed(tmp_path / "seed")
    answered(tmp_path / "out", "seed", seed)
    with pytest.raises(UserError, match="losses were asked for, and no words"):
        write_predictions(tmp_path / "out", {"seed": seed}, "pargo")


def test_the_tool_writes_them(tmp_path):
    table = table_of("mmbench", tmp_path)
    answered(tmp_path / "out", "mmbench", table)
    tool = [sys.executable, str(ROOT / "tools/evaluate.py"), "--predictions", str(tmp_path / "out")]
    done = run_command([*tool, "--table", f"mmbench={table}", "--model", "mine"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("out/mmbench/vlmevalkit/mine_MMBench_DEV_EN.tsv")
    assert "--table NAME=TSV go together" in run_command(tool).stderr
