"""Promises of the comparison of trainers: all see the same samples, and figures follow from
clocks.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from tiny import tiny_samples

from pargo_ds.data.shards.mds import write_shards
from pargo_ds.speed import training_benchmark
from pargo_ds.speed.hf_trainer import PaddingCollator, rows_per_batch
from pargo_ds.speed.step_parts import PARTS, REST, split
from pargo_ds.speed.training_data import run_on, text_samples
from pargo_ds.speed.training_rows import SYSTEMS, as_json, rows_of
from pargo_ds.speed.training_turns import Turn

COUNT = 24


@pytest.fixture(scope="module")
def measured(tiny_run, tmp_path_factory):
    """Turns and a turn by part of the three systems, on a tiny model and 24 samples."""
    folder = tmp_path_factory.mktemp("benchmark")
    write_shards(tiny_samples(COUNT), folder / "shards")
    (folder / "run.yaml").write_text(yaml.safe_dump(tiny_run))
    run = run_on(folder / "run.yaml", "demo", [folder / "shards"], folder / "out")
    return training_benchmark.turns_of(run, 1, 2, SYSTEMS, lambda _: None)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three systems start; beside other work that took 300 s
def test_every_system_sees_each_sample_once_an_epoch(measured):
    found, _ = measured
    expected = sorted(sample.id for sample in tiny_samples(COUNT))
    assert list(found) == ["ours", "hf_trainer", "hf_trainer_grouped"]
    for turns in found.values():
        assert len(turns) == 2
        for turn in turns:
            assert sorted(turn.sample_ids) == expected
            assert turn.useful_tokens == found["ours"][0].useful_tokens


def test_a_trainer_that_the_system_killed_is_said_to_have_been_killed(tiny_run, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_run))
    run = run_on(tmp_path / "run.yaml", "demo", [tmp_path / "shards"], tmp_path / "out")
    system = training_benchmark.System(run, "ours", 1)
    system.workers[0].kill()  # as the kernel does when no memory is left
    with pytest.raises(RuntimeError, match="of ours was killed.*benchmark.log"):
        system.wait_until_ready()
    system.end()


@pytest.mark.parametrize("ranks, packs", [(1, 4), (2, 4), (3, 6), (8, 8)])
def test_a_step_divides_over_all_gpus(tiny_run, tmp_path, ranks, packs):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tiny_run))
    run = run_on(tmp_path / "run.yaml", "demo", [tmp_path], tmp_path / "out", (), ranks)
    assert run.batch.packs_per_step == packs
    run.check_ranks(ranks)


@pytest.mark.slow
def test_losses_are_finite_and_fall_in_every_system(measured):
    found, _ = measured
    for turns in found.values():
        assert all(math.isfinite(loss) for turn in turns for loss in turn.losses)
        first, last = (sum(turn.losses) / len(turn.losses) for turn in turns)
        assert last < first


@pytest.mark.slow
def test_only_padded_rows_compute_more_than_the_samples_tokens(measured):
    found, _ = measured
    assert all(turn.computed_tokens == turn.useful_tokens for turn in found["ours"])
    for system in ("hf_trainer", "hf_trainer_grouped"):
        assert all(turn.computed_tokens > turn.useful_tokens for turn in found[system])


@pytest.mark.slow
def test_rows_of_real_turns_are_well_formed(measured):
    rows = json.loads(json.dumps(as_json(rows_of("demo", *measured))))
    for row in rows:
        assert row["data"] == "demo"
        assert row["samples_per_s"] > 0
        assert row["ratio"] > 0
        assert row["cpu_s_per_sample"]["median"] > 0
        assert row["memory_gib"] > 0
        assert 0 <= row["data_wait"]["median"] <= 1
        parts = row["ms_per_sample_by_part"]
        assert set(parts) == {*PARTS, REST}
        for part in ("vision", "projector", "llm", "backward"):
            assert parts[part] > 0, (row["system"], parts)
    assert rows[0]["ratio"] == 1.0
    # As many samples a step as ours, up to the rounding of a batch to whole samples.
    assert all(0.5 < row["samples_per_step"] / rows[0]["samples_per_step"] < 2 for row in rows)


def turn(seconds: float, cpu_s: float, computed: int = 100) -> Turn:
    """Ten samples in five steps."""
    return Turn(
        seconds=seconds,
        cpu_s=cpu_s,
        data_wait_s=seconds / 10,
        useful_tokens=100,
        computed_tokens=computed,
        steps=5,
        memory_gib=seconds,
        sample_ids=[str(i) for i in range(10)],
        parts={"backward": seconds},
    )


def test_a_ratio_is_the_median_of_ratios_of_the_same_turn():
    found = {
        "ours": [turn(1, 2), turn(2, 2), turn(4, 2)],
        "hf_trainer": [turn(3, 3, 150), turn(4, 4, 150), turn(10, 5, 150)],
    }
    parts = {"ours": turn(1, 1), "hf_trainer": turn(2, 2)}
    ours, other = rows_of("mix", found, parts)
    assert (ours.ratio, ours.cpu_ratio, ours.samples_per_s) == (1.0, 1.0, 5.0)
    assert (other.ratio, other.ratio_of_turns.least, other.ratio_of_turns.most) == (2.5, 2.0, 3.0)
    assert (other.cpu_ratio, other.cpu_s_per_sample.median) == (2.0, 0.4)
    assert (other.samples_per_s, other.useful_tokens_per_s.median) == (2.5, 25.0)
    assert (other.computed_per_useful.median, other.data_wait.median) == (1.5, 0.1)
    assert (other.samples_per_step, other.memory_gib, other.turns) == (2.0, 10, 3)
    assert other.ms_per_sample_by_part == {"backward": 200.0}


def test_a_sample_that_fills_up_a_batch_does_not_count():
    filled = turn(2, 2)
    filled.sample_ids.append("0")
    _, other = rows_of(
        "demo", {"ours": [turn(1, 1)], "hf": [filled]}, {"ours": turn(1, 1), "hf": turn(1, 1)}
    )
    assert (other.samples_per_s, other.cpu_s_per_sample.median) == (5.0, 0.2)


def test_parts_of_a_step_add_up_to_it():
    measured = dict.fromkeys(PARTS, 1.0) | {"forward": 5.0, "loss and fusion": 0.0}
    parts = split(measured, 20.0)
    assert parts["loss and fusion"] == 2.0
    assert parts[REST] == 12.0
    assert sum(parts.values()) == 20.0


def test_padding_is_masked_and_never_a_target():
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    rows = PaddingCollator(9)(
        [
            {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "pixels": pixels, "sample_id": "a"},
            {"input_ids": [4], "labels": [4], "pixels": pixels[:0], "sample_id": "b"},
        ]
    )
    assert rows["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert rows["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert rows["pixel_values"].shape == (1, 3, 4, 4)
    assert (rows["sample_ids"], rows["useful_tokens"]) == (["a", "b"], 4)


@pytest.mark.parametrize(("samples", "packs", "rows"), [(60, 20, 3), (59, 20, 3), (5, 20, 1)])
def test_batches_hold_as_many_samples_as_packs_do(samples, packs, rows):
    assert rows_per_batch(samples, packs) == rows


def test_texts_of_the_mix_are_long_uneven_and_always_the_same():
    scenes = [sample for sample in tiny_samples(20) if sample.images]
    texts = list(text_samples(scenes, 200))
    words = sorted(len(text.turns[1]["content"].split()) for text in texts)
    assert texts == list(text_samples(scenes, 200))
    assert not any(text.images for text in texts)
    assert words[0] >= 20
    assert words[-1] == 600
    # the median of 200 draws with sigma 0.8 has a standard error of 7 %
    assert 200 < words[100] < 310
