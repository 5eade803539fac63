"""A plan is kept in the run's folder and held beside what the run measured."""

import json
import sys
from dataclasses import replace

import pytest
from tiny import ROOT, run_command

from pargo_ds.errors import ConfigError
from pargo_ds.planning.residual import PLAN, Prediction, residual, save

PLANNED = Prediction(
    ranks=8, gpu="h100", network_gbits=400, zero_stage=3, checkpointed_layers=0,
    step_s=1.0, tokens=1000.0, images=20.0, memory_gib=40.0, mfu=0.4,
)  # fmt: skip


def measured(folder, seconds):
    rows = [
        {"step": step, "step_s": s, "tokens": 1100.0, "images": 20.0, "memory_gib": 30.0 + step}
        for step, s in enumerate(seconds, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_residual_is_that_of_the_median_step_after_the_first_ones(tmp_path):
    save(tmp_path, PLANNED)
    measured(tmp_path, [9.0, 9.0, 9.0, 9.0, 9.0, 1.2, 1.5, 7.0])
    lines = residual(tmp_path, ranks=8)
    assert "8 x h100, ZeRO-3, 0 layers checkpointed; measured in 3 steps" in lines[0]
    assert "  step_s s: predicted 1, measured 1.5 (+50%)" in lines
    assert "  tokens: predicted 1000, measured 1100 (+10%)" in lines
    assert "  memory_gib: predicted 40, measured 38 (-5%)" in lines


def test_a_plan_for_other_ranks_and_a_run_without_steps_have_no_residual(tmp_path):
    with pytest.raises(ConfigError, match="nothing was predicted"):
        residual(tmp_path)
    save(tmp_path, replace(PLANNED, ranks=16))
    with pytest.raises(ConfigError, match="is for 16 ranks, the run had 8"):
        residual(tmp_path, ranks=8)
    with pytest.raises(ConfigError, match="has measured nothing yet"):
        residual(tmp_path)
    measured(tmp_path, [1.0])
    with pytest.raises(ConfigError, match="no step after the first 5"):
        residual(tmp_path)
    (tmp_path / PLAN).write_text('{"ranks": 8}')
    with pytest.raises(ConfigError, match="is no plan of this version"):
        residual(tmp_path)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["x.yaml", "--gpus", "0"], "0 is no whole number of 1 or more"),
        (["x.yaml", "--disk", "0"], "0 is no number above 0"),
        (["x.yaml", "--sizes", "1b"], "--sizes and --picture belong to --sweep"),
        (["x.yaml", "y.yaml"], "several run files can be planned with --sweep only"),
        ([], "which run?"),
        (["--residual", "nowhere"], "nowhere/plan.json is missing: nothing was predicted"),
        (["none.yaml"], "run file none.yaml does not exist"),
    ],
)
def test_nonsense_arguments_are_refused_in_one_sentence(arguments, said, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from plan_run import main

    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_a_run_with_a_plan_prints_its_residual_at_the_end(launch, tmp_path):
    """One rank and six steps; tools/plan_run.py --residual prints the same."""
    save(tmp_path / "planned", replace(PLANNED, ranks=1))
    changes = {"name": "planned", "train": {"steps": 6}, "reporting": {"log_every": 1}}
    process, run_dir = launch(1, changes)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "  step_s s: predicted 1, measured " in process.stderr
    said = run_command([sys.executable, "tools/plan_run.py", "--residual", str(run_dir)])
    assert "  memory_gib: predicted 40, measured " in said.stdout
