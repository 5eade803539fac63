"""tools/evaluate.py and tools/check_node.py, which the jobs run, without any Slurm."""

from __future__ import annotations

import json
import math
import sys

import pytest
from tiny import ROOT, metrics, run_command

from pargo_ds.data.shards.splits import split_folders
from pargo_ds.evaluation.validation import table

ASKED = {
    "accuracy": {"overall": 0.75, "by_type": {"colour": 0.5, "naming": 1.0}},
    "blind_accuracy": {"overall": 0.25, "by_type": {"colour": 0.5, "naming": 0.0}},
    "questions": {"overall": 4, "by_type": {"colour": 2, "naming": 2}},
}
LOSS = {"loss": 1.5, "target_tokens": 1200, "conversations": 30}


@pytest.mark.slow
def test_an_export_has_the_validation_loss_that_training_reported(launch, tiny_run, tmp_path):
    process, run_dir = launch(1, {"train": {"steps": 2}, "validation": {"every": 1, "packs": 1000}})
    assert process.returncode == 0, process.stderr
    convert = [
        sys.executable,
        str(ROOT / "tools/convert_checkpoint.py"),
        "zero-to-hf",
        str(run_dir),
        str(tmp_path / "export"),
    ]
    assert run_command(convert).returncode == 0
    command = [
        sys.executable,
        str(ROOT / "tools/evaluate.py"),
        str(tmp_path / "export"),
        tiny_run["data"]["validation"],
    ]
    process = run_command(
        [*command, "--run", str(run_dir / "config.yaml"), "--json", str(tmp_path / "figures.json")]
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert math.isclose(
        figures["validation"]["loss"], metrics(run_dir)[-1]["validation_loss"], rel_tol=1e-5
    )
    assert figures["questions"] is None
    assert "no questions" in process.stdout


def test_the_table_has_a_row_for_each_type_of_question():
    lines = table({"validation": LOSS, "questions": ASKED}).splitlines()
    assert "1.5000 nats" in lines[0]
    assert [line.split() for line in lines[2:]] == [
        ["colour", "50.0%", "50.0%", "2"], ["naming", "100.0%", "0.0%", "2"], ["overall", "75.0%", "25.0%", "4"]
    ]  # fmt: skip
    assert (
        table({"validation": LOSS, "questions": ASKED | {"blind_accuracy": None}})
        .splitlines()[-1]
        .split()[2]
        == "-"
    )


def test_shards_are_found_with_their_training_split(tiny_shards, tmp_path):
    wanted = (tiny_shards / "validation", tiny_shards / "train")
    assert split_folders(tiny_shards) == split_folders(tiny_shards / "validation") == wanted
    assert split_folders(tiny_shards / "train") == (tiny_shards / "train", None)
    with pytest.raises(ValueError, match="holds no shards"):
        split_folders(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--scratch", "/tmp"], "good"),
        (["--scratch", "/proc"], "/proc takes no file"),
        (["--scratch", "/tmp", "--free-gb", "1e9"], "GB free, 1e+09 are needed"),
        (["--gpus", "2"], "0 GPUs of 2 are seen"),
    ],
)
def test_a_node_says_what_is_wrong_with_it(arguments, said):
    command = [sys.executable, str(ROOT / "tools/check_node.py"), *arguments]
    process = run_command(command, SLURMD_NODENAME="node7")
    assert process.stdout.startswith("node node7: ")
    assert said in process.stdout
    assert process.returncode == (0 if said == "good" else 1)
