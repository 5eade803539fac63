"""A trial without DeepSpeed trains as the trainer does; a sweep is whole, resumable and reported
with its spread.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import merged, run_command

from pargo_ds.config import parse_config
from pargo_ds.errors import ConfigError
from pargo_ds.learning.curves import reached, rows_of, spread, table
from pargo_ds.learning.measures import first_reaching, image_share, module_of
from pargo_ds.learning.sweep import jobs, load_sweep
from pargo_ds.learning.trial import run_trial

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_fp32.json"


def trial_lines(tiny_run: dict, folder: Path, changes: dict, every: int = 10) -> list[dict]:
    run = parse_config(merged(tiny_run, {"output": str(folder), **changes}))
    run_trial(run, folder / "trial.jsonl", every=every)
    return [json.loads(line) for line in (folder / "trial.jsonl").read_text().splitlines()]


def test_a_trial_has_the_losses_of_the_deepspeed_trainer(tiny_run, tmp_path):
    lines = trial_lines(tiny_run, tmp_path, {"train": {"steps": 20}})
    golden = json.loads(GOLDEN.read_text())["losses"]
    off = max(
        abs(line["loss"] - truth) / truth for line, truth in zip(lines[1:], golden, strict=False)
    )
    print(f"largest relative difference from the golden curve: {off:.1e}")
    assert off < 1e-5  # measured: 2.2e-8


def test_measures_are_what_they_say(tiny_run, tmp_path):
    lines = trial_lines(tiny_run, tmp_path, {"train": {"steps": 4, "llm": "frozen"}}, every=2)
    assert [line["step"] for line in lines if "gap" in line] == [0, 2, 4]
    start, end = lines[0], lines[-1]
    # A new projector says nothing of the image (PGP's output is zero), so another image changes
    # nothing.
    assert start["image_share"]["output"] == 0
    assert start["gap"] == 0
    assert end["image_share"]["output"] > 0
    assert end["gap"] == pytest.approx(end["wrong"] - end["right"])
    total = sum(norm**2 for norm in lines[1]["grad_norms"].values()) ** 0.5
    assert total == pytest.approx(lines[1]["grad_norm"], rel=1e-4)
    assert lines[1]["updates"]["output"] > 0
    assert (
        lines[1]["updates"]["layers.0.perception"] == 0
    )  # behind the zero start nothing has a gradient yet
    assert lines[2]["updates"]["layers.0.perception"] > 0
    assert "llm" not in lines[1]["grad_norms"]


def test_share_of_image_variance_on_tokens_whose_share_is_known():
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(1, 40, 64, generator=generator)
    of_image = torch.randn(200, 40, 64, generator=generator)
    assert image_share(own.expand(200, -1, -1)) == 0
    assert image_share(own + of_image) == pytest.approx(
        0.5, abs=0.02
    )  # as much from images as from tokens
    assert image_share(own + 3 * of_image) == pytest.approx(0.9, abs=0.02)


def test_modules_are_named_as_a_reader_would():
    assert module_of("projector.layers.2.perception.query.weight") == "layers.2.perception"
    assert module_of("projector.output.weight") == "output"
    assert module_of("llm.model.layers.0.q_proj.lora_A.weight") == "llm"


def line(step: int, gap: float) -> dict:
    return {
        "step": step,
        "images": 8 * step,
        "gap": gap,
        "right": 1.0,
        "loss": 5 - step,
        "grad_norm": 10.0,
    }


def test_the_table_has_the_spread_over_seeds_and_how_many_reached_a_gap():
    trials = {
        ("10", "a"): {
            seed: [line(0, 0.0), line(1, 1.0 + seed), line(2, 2.0 * seed)] for seed in (0, 1, 2)
        }
    }
    (row,) = rows_of(trials, [1.0, 3.0])
    assert row["gap"] == [0.0, 2.0, 4.0]
    assert row["reached"] == {1.0: [8, 8, 8], 3.0: [None, None, 8]}
    assert row["rise"] == [0, 0, 0]
    assert spread(row["gap"]) == "2.00 [0.00, 4.00]"
    assert reached([8, None, 16]) == "12 (2 of 3)"
    assert "8 (1 of 3)" in table([row], [1.0, 3.0])
    assert first_reaching([line(1, 0.5)], 1.0) is None


@pytest.fixture
def sweep_file(tiny_run, tiny_shards, tmp_path) -> Path:
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(merged(tiny_run, {"train": {"steps": 3, "llm": "frozen"}})))
    sweep = {
        "base": str(base),
        "worlds": {"squares": str(tiny_shards)},
        "variants": {
            "as it is": {},
            "pooled": {"projector": {"type": "adaptive_pool", "tokens": 9}},
        },
        "seeds": [0],
        "every": 2,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def test_a_sweep_continues_with_what_has_no_result_and_takes_more_variants(sweep_file, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "tools/trial_projector.py", str(sweep_file), str(out)]
    first = run_command([*command, "--only", "as it is"])
    assert first.returncode == 0, first.stderr
    kept = (out / "squares/as it is/seed_0.jsonl").read_bytes()
    stopped = out / "squares/pooled/seed_0.jsonl.part"
    stopped.parent.mkdir(parents=True)
    stopped.write_text('{"step": 0}\n')  # of a trial that was killed
    second = run_command(command)
    assert second.returncode == 0, second.stderr
    assert (out / "squares/as it is/seed_0.jsonl").read_bytes() == kept
    assert len((out / "squares/pooled/seed_0.jsonl").read_text().splitlines()) == 4
    assert not stopped.exists()
    assert "pooled" in (out / "table.md").read_text()
    assert (out / "curves.png").stat().st_size > 10_000


def test_a_trial_that_fails_is_named_and_the_others_have_their_results(sweep_file, tmp_path):
    sweep = yaml.safe_load(sweep_file.read_text())
    sweep["variants"] = {
        "blows up": {"train.projector.lr": 1e30, "projector.soft_prompt": False},
        "as it is": {},
    }
    sweep_file.write_text(yaml.safe_dump(sweep))
    done = run_command(
        [sys.executable, "tools/trial_projector.py", str(sweep_file), str(tmp_path / "out")]
    )
    assert done.returncode == 1
    assert "failed: squares, blows up, seed 0: FloatingPointError" in done.stderr
    assert (tmp_path / "out/squares/as it is/seed_0.jsonl").exists()
    assert not (tmp_path / "out/squares/blows up/seed_0.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worlds": {"squares": "nowhere"}}, "worlds without shards: squares: nowhere"),
        ({"variants": {"a/b": {}}}, "'a/b' cannot be a name"),
        ({"variants": {"a": {"train.projector.rate": 1}}}, "rate"),
        ({"sedes": [1]}, "sedes"),
    ],
)
def test_a_wrong_sweep_file_is_one_error_that_names_its_fault(
    sweep_file, tmp_path, change, message
):
    sweep_file.write_text(yaml.safe_dump({**yaml.safe_load(sweep_file.read_text()), **change}))
    with pytest.raises(ConfigError, match=message):
        jobs(load_sweep(sweep_file), tmp_path / "out")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("seeds: [0]\nseeds: [1]", "sweep.yaml, line 2: the key seeds stands in line 1"),
        ("variants: {a: {train.projector.lr: yes}}", "line 1: yes is a truth value or a text"),
        ("base: x\nevery: fast", "line 2, every: Input should be a valid integer"),
        ("base: $NO_SUCH_VARIABLE/x", "line 1, base: the variable"),
    ],
)
def test_a_sweep_file_is_read_as_strictly_as_a_run_file(tmp_path, lines, message):
    (tmp_path / "sweep.yaml").write_text(lines)
    with pytest.raises(ConfigError, match=message):
        load_sweep(tmp_path / "sweep.yaml")
