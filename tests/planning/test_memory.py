"""Memory that the plan predicts is what a real run on two ranks takes."""

import json

import pytest
from tiny import ROOT, merged, metrics

from pargo_ds.config import parse_config
from pargo_ds.planning import plan
from pargo_ds.planning.hardware import GPUS, Network
from pargo_ds.planning.host import table_times
from pargo_ds.planning.load import typical_load
from pargo_ds.planning.memory import OF_DEVICE
from pargo_ds.planning.subject import subject_of


def predicted_gib(run):
    """As torch allocates it, on two ranks under ZeRO-3, nothing computed again."""
    subject = subject_of(run)
    load = typical_load(run, subject.visual_tokens, None, None)
    cluster = plan.Cluster(2, GPUS["h100"], Network(50), table_times("frozen"))
    one = plan.strategy(subject, cluster, load, stage=3, again=0)
    parts = {part: value / plan.GIB for part, value in one.memory.items() if part not in OF_DEVICE}
    print({part: round(value, 3) for part, value in parts.items()})
    return sum(parts.values())


@pytest.mark.slow
def test_peak_memory_of_a_real_run_is_predicted_within_a_tenth(
    launch, monkeypatch, tmp_path, tiny_run
):
    """Resident memory of a rank, above that of a run of the same code whose own share is small:
    interpreter and libraries take as much as the run does.
    """
    # freed memory goes back at once, as a GPU's allocator would hand it out again
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 16))
    settings = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    settings["zero_optimization"]["reduce_bucket_size"] = 1_000_000
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    shared = {
        "deepspeed": str(tmp_path / "zero.json"),
        "train": {"llm": "frozen", "steps": 2, "activation_checkpointing": "none"},
        "reporting": {"log_every": 1},
    }
    wide = {
        "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    }  # fmt: skip
    large = {"tokens_per_pack": 2048, "images_per_pack": 64, "packs_per_step": 2}
    changes = {
        "small": shared,
        "large": merged(shared, {"llm": {"architecture": wide}, "batch": large}),
    }
    measured, predicted = {}, {}
    for name, change in changes.items():
        process, run_dir = launch(2, {"name": name, **change})
        assert process.returncode == 0, process.stderr[-3000:]
        measured[name] = max(row["memory_gib"] for row in metrics(run_dir))
        predicted[name] = predicted_gib(parse_config(merged(tiny_run, change)))
    print(measured, predicted)
    taken = measured["large"] - measured["small"]
    expected = predicted["large"] - predicted["small"]
    assert expected > 0.5
    assert taken == pytest.approx(expected, rel=0.1)
