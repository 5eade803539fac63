"""Promises of the plan on a realistic mix, beside simpler ways of packing, and of its cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pargo_ds import assembly
from pargo_ds.config import load_config
from pargo_ds.data.packing.lengths import write_side_car
from pargo_ds.data.packing.packs import Budget
from pargo_ds.data.shards.folder import open_folder
from pargo_ds.speed import plan_benchmark
from pargo_ds.speed.step_evenness import first_fit


def benchmark(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    plan_benchmark.add_arguments(parser)
    return plan_benchmark.run(parser.parse_args(arguments))


def test_our_packs_are_fuller_and_more_alike_than_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Measured with 200,000 items: fill 0.998; images 1.05, with eight canonical nodes 1.10 (in
    time 1.015, 1.029).
    """
    assert benchmark("--items", "40000", "--json", str(tmp_path / "plan.json")) == 0
    written = json.loads((tmp_path / "plan.json").read_text())
    figures = written["packings"]
    ours = [one for name, one in figures.items() if name.startswith("ours")]
    others = [one for name, one in figures.items() if not name.startswith("ours")]
    assert len(ours) == 2
    assert len(others) == 3
    for one in ours:
        assert one["fill"] >= 0.98
        assert one["image_straggler"] <= 1.2
        assert one["image_time"] <= 1.05
        assert one["token_straggler"] <= 1.02
        assert one["fill"] > max(other["fill"] for other in others)
        assert one["image_straggler"] < min(other["image_straggler"] for other in others)
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)
    assert_steps_are_even(written["steps"]["64"])
    assert_steps_are_even(written["steps"]["24"])


def assert_steps_are_even(steps: dict[str, dict[str, float]]) -> None:
    """Measured with 64 packs: samples 0.04, drawn 0.05 (samples) and 0.09 (packs), before 0.38."""
    ours = [one for name, one in steps.items() if name.startswith("ours")]
    drawn, before = steps["our packs at random"], steps["like packs a step"]
    assert len(ours) == 2
    for one in ours:
        for kind in ("samples_spread", "targets_spread", "images_spread", "stream_chi2"):
            assert one[kind] < drawn[kind] < before[kind] / 2
        assert one["straggler"] <= 1.05
        assert one["fill"] >= 0.98
    # Of samples drawn at random chi-square is its degrees of freedom, whatever the mix.
    assert steps["samples at random"]["stream_chi2"] == pytest.approx(1, abs=0.2)


def test_next_fit_and_first_fit_of_a_hand_made_case() -> None:
    budget = Budget(tokens_per_pack=10, images_per_pack=1, packs_per_step=1)
    tokens, none = np.array([6, 5, 4, 3, 2]), np.zeros(5, int)
    assert first_fit(tokens, none, budget, 1).tolist() == [0, 1, 1, 2, 2]
    assert first_fit(tokens, none, budget, 2).tolist() == [0, 1, 0, 1, 1]
    assert first_fit(tokens[:2] - 4, np.ones(2, int), budget, 2).tolist() == [0, 1]


def test_a_runs_own_lengths_are_used(
    tiny_run, tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture
) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(yaml.safe_dump({**tiny_run, "output": str(tmp_path)}))
    run = load_config(run_file)
    with pytest.raises(
        ValueError, match="has no lengths for its texts .*build_shards.py lengths RUN.yaml"
    ):
        benchmark("--run", str(run_file))
    cache = run.run_dir / "cache"
    folder = open_folder(run.data.train[0].path)
    place = write_side_car(folder, run.data, assembly.build_processor(run))
    cache.mkdir(parents=True)
    place.rename(cache / place.name)
    (folder.local / "lengths").rmdir()
    assert benchmark("--run", str(run_file)) == 0
    assert "packs of 128 tokens and 6 images, 8 a step, 8 ranks" in capsys.readouterr().out


def test_large_plan_is_measured_and_its_resume_is_exact() -> None:
    found = plan_benchmark.measure_large(300_000)
    assert found["items"] == 300_000
    assert found["steps"] > 600
    assert found["step_at_true_position_s"] < 5


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_ten_million_items_are_planned_in_little_memory_and_resumed_at_once() -> None:
    """Measured on two cores of a busy server: 2.6 s of CPU time, 4 to 9 s by the clock, and 350 to
    360 MB.

    The bound is on CPU time, because the clock also shows what else the machine does.
    """
    found = plan_benchmark.measure_large(10_000_000)
    assert found["resume_in_mid_epoch_cpu_s"] < 5
    assert found["step_at_true_position_s"] < 1
    assert found["memory_of_planning_mb"] < 500
