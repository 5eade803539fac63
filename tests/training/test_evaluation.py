"""Benchmarks asked during training on two ranks under ZeRO-3."""

from __future__ import annotations

import json
import sys

import official_layouts as layouts
import pytest
from tiny import ROOT, metrics, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_losses_are_the_same_with_and_without_and_figures_are_those_of_the_export(launch, tmp_path):
    """With LoRA's dropout, so that the random state would tell; an odd number of batches, so that
    a rank has none of its own in the last round.
    """
    lora = {"rank": 2, "alpha": 4, "dropout": 0.3, "targets": ["q_proj", "v_proj"]}
    train = {"steps": 5, "llm": {"mode": "lora", "lr": 1e-3, "lora": lora}}
    process, run_dir = launch(2, {"name": "without", "train": train})
    assert process.returncode == 0, process.stderr[-3000:]
    without = metrics(run_dir)

    files = {
        "pope": str(layouts.pope(tmp_path / "pope")),
        "vstar": str(layouts.vstar(tmp_path / "v")),
        "seed": str(layouts.seed(tmp_path / "seed")),
    }
    evaluation = {"benchmarks": files, "every": 2, "batch": 4}
    process, run_dir = launch(2, {"name": "with", "train": train, "evaluation": evaluation})
    assert process.returncode == 0, process.stderr[-3000:]
    rows = metrics(run_dir)
    for name in ("loss", "grad_norm", "samples"):
        assert [row[name] for row in rows] == [row[name] for row in without]
    asked = [row["step"] for row in rows if "evaluation_pope" in row]
    assert asked == [2, 4, 5]

    export = tmp_path / "export"
    tool = [sys.executable, str(ROOT / "tools/convert_checkpoint.py"), "zero-to-hf"]
    process = run_command([*tool, str(run_dir), str(export), "--merge-lora"])
    assert process.returncode == 0, process.stderr[-3000:]
    tool = [sys.executable, str(ROOT / "tools/evaluate.py"), str(export), "--subset"]
    tool += [f"--benchmark={name}={path}" for name, path in files.items()]
    process = run_command(
        [*tool, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "s.json")]
    )
    assert process.returncode == 0, process.stderr[-3000:]
    scores = json.loads((tmp_path / "s.json").read_text())
    for name, found in scores.items():
        value = found["figures"][found["headline"]]["value"]
        assert rows[-1][f"evaluation_{name}"] == pytest.approx(value), name
        assert rows[-1][f"evaluation_{name}_questions"] == found["asked"]
