"""Collectives that the plan predicts are those of real runs on two ranks, count by count."""

import json

import pytest
from tiny import ROOT, merged

from pargo_ds.config import parse_config
from pargo_ds.planning.gathers import fill_buckets, replay
from pargo_ds.planning.plan import zero_sizes
from pargo_ds.planning.rehearsal import rehearse
from pargo_ds.planning.subject import subject_of

WORKER = ROOT / "tests/training/counting_worker.py"
LAYER = 4 * 128**2 + 3 * 128 * 64 + 2 * 128


def eight_layers(zero: int, tmp_path, sizes: dict, **train) -> dict:
    """Changes of the tiny run: eight decoder layers, and DeepSpeed's sizes in the proportion that
    its defaults have to a 7B LLM.
    """
    settings = json.loads((ROOT / f"ds_configs/zero{zero}.json").read_text())
    settings["zero_optimization"] |= sizes
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    return {
        "deepspeed": str(tmp_path / "zero.json"),
        "llm": {"architecture": {"num_hidden_layers": 8, "hidden_size": 128}},
        "train": {"steps": 5, "activation_checkpointing": "none", **train},
        "validation": {"every": 1000},
    }


TIGHT = {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 5 * LAYER}
CASES = {
    "layers": (TIGHT, {}),
    "layers, frozen": (TIGHT, {"llm": "frozen"}),
    "layers, checkpointed": (TIGHT, {"activation_checkpointing": "full"}),
    "layers, small buckets": ({**TIGHT, "reduce_bucket_size": 2 * LAYER}, {}),
    "layers, DeepSpeed's own live sizes": ({}, {}),
    "modules": ({**TIGHT, "stage3_param_persistence_threshold": 128,
                 "stage3_prefetch_bucket_size": LAYER // 4}, {"zero3_gather": "modules"}),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    ["layers", *(pytest.param(one, marks=pytest.mark.slow) for one in CASES if one != "layers")],
)
def test_gathers_and_reductions_of_a_real_run_are_predicted_exactly(
    launch, monkeypatch, tmp_path, tiny_run, case
):
    chosen, train = CASES[case]
    changes = eight_layers(3, tmp_path, chosen, **train)
    monkeypatch.setenv("RECORD", str(tmp_path / "counts.json"))
    process, _ = launch(2, {"name": "counted", **changes}, module=[str(WORKER)])
    assert process.returncode == 0, process.stderr[-3000:]
    lines = json.loads((tmp_path / "counts.json").read_text())[6:8]
    run = parse_config(merged(tiny_run, changes))
    layers = 8 if train.get("activation_checkpointing") == "full" else 0
    rehearsal, sizes = rehearse(run, layers), zero_sizes(subject_of(run), 3, ranks=2)
    found = replay(rehearsal, sizes)
    weights = {weight.number: weight.numel for weight in rehearsal.weights()}
    kept_whole = sum(numel <= sizes.persistent for numel in weights.values())
    # the last micro-step holds the update, after which DeepSpeed gathers each of these alone
    of_update = (0, kept_whole)
    for line, step, more in zip(lines, found, of_update, strict=True):
        print(
            case, line["collectives"], len(step.forward), len(step.backward), len(step.reductions)
        )
        predicted = {
            "_allgather_base_": len(step.forward) + len(step.backward) + more,
            "_reduce_scatter_base_": len(step.reductions),
        }
        counted = {name: line["collectives"].get(name, 0) for name in predicted}
        assert counted == predicted
    first, last = lines
    assert set(first["collectives"]) == set(predicted)
    # the last micro-step holds the update, whose gradient norm and overflow are agreed upon
    assert set(last["collectives"]) <= {*predicted, "allreduce_"}


def test_buckets_are_filled_in_order_and_a_large_gradient_is_alone():
    assert fill_buckets([3, 3, 9, 1], 6) == (6, 9, 1)
    assert fill_buckets([], 6) == ()
    assert sum(fill_buckets([5] * 7, 12)) == 35
