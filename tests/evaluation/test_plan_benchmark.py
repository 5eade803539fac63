"""Promises of the plan on a realistic mix, beside simpler ways of packing, and of its cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pargo_ds.config import load_config
from pargo_ds.data.lengths import write_side_car
from pargo_ds.data.plan import Budget
from pargo_ds.data.stores import open_folder
from pargo_ds.evaluation import plan_benchmark
from pargo_ds.training import assembly


def benchmark(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan_benchmark.add_arguments(parser)
    return plan_benchmark.run(parser.parse_args(arguments))


def test_our_packs_are_fuller_and_more_alike_than_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Measured with 200,000 items: fill 0.998; pictures 1.04, with eight canonical nodes 1.15 (in time 1.01, 1.04)."""
    assert benchmark("--items", "40000", "--json", str(tmp_path / "plan.json")) == 0
    figures = json.loads((tmp_path / "plan.json").read_text())["packings"]
    ours = [one for name, one in figures.items() if name.startswith("ours")]
    others = [one for name, one in figures.items() if not name.startswith("ours")]
    assert len(ours) == 2
    assert len(others) == 3
    for one in ours:
        assert one["fill"] >= 0.98
        assert one["picture_straggler"] <= 1.2
        assert one["picture_time"] <= 1.1
        assert one["token_straggler"] <= 1.02
        assert one["fill"] > max(other["fill"] for other in others)
        assert one["picture_straggler"] < min(other["picture_straggler"] for other in others)
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)


def test_next_fit_and_first_fit_of_a_hand_made_case() -> None:
    budget = Budget(tokens_per_pack=10, pictures_per_pack=1, packs_per_step=1)
    tokens, none = np.array([6, 5, 4, 3, 2]), np.zeros(5, int)
    assert plan_benchmark._fitted(tokens, none, budget, 1).tolist() == [0, 1, 1, 2, 2]
    assert plan_benchmark._fitted(tokens, none, budget, 2).tolist() == [0, 1, 0, 1, 1]
    assert plan_benchmark._fitted(tokens[:2] - 4, np.ones(2, int), budget, 2).tolist() == [0, 1]


def test_a_runs_own_lengths_are_used(
    tiny_run, tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({**tiny_run, "output": str(tmp_path)}))
    run = load_config(run_file)
    with pytest.raises(ValueError, match="has no lengths for its texts .*build_shards.py lengths RUN.yaml"):
        benchmark("--run", str(run_file))
    cache = run.run_dir / "cache"
    folder = open_folder(run.data.train[0].path)
    place = write_side_car(folder, run.data, assembly.build_processor(run))
    cache.mkdir(parents=True)
    place.rename(cache / place.name)
    (folder.local / "lengths").rmdir()
    assert benchmark("--run", str(run_file)) == 0
    assert "packs of 128 tokens and 6 pictures, 8 a step, 8 ranks" in capsys.readouterr().out


def test_large_plan_is_measured_and_its_resume_is_exact() -> None:
    found = plan_benchmark.measure_large(300_000)
    assert found["items"] == 300_000
    assert found["steps"] > 600
    assert found["step_at_true_position_s"] < 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_million_items_are_planned_in_little_memory_and_resumed_at_once() -> None:
    """Measured on two cores of a busy server: 2.6 s of CPU time, 4 to 9 s by the clock, and 350 to 360 MB.

    The bound is on CPU time, because the clock also shows what else the machine does.
    """
    found = plan_benchmark.measure_large(10_000_000)
    assert found["resume_in_mid_epoch_cpu_s"] < 5
    assert found["step_at_true_position_s"] < 1
    assert found["memory_of_planning_mb"] < 500
