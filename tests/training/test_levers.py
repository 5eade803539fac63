"""Settings that make a step faster leave what is learned as it is, and ask the host for less."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny import ROOT, merged, run_command

HERE = Path(__file__).parent
LORA = (
    "{mode: lora, lr: 1.0e-3, lora: {rank: 4, alpha: 8, dropout: 0.0, targets: [q_proj, v_proj]}}"
)
MODES = {
    "frozen": ["train.llm=frozen"],
    "lora": [f"train.llm={LORA}"],
    "full": [],
    "all": ["train.vision={mode: full, lr: 1.0e-3}"],
}
# Measured over 20 steps, 1 and 2 ranks, all cases: losses 5e-8 and gradient norms 4e-7 relative,
# sums in another order.
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-6, 5e-6
LAYER = 4 * 128**2 + 3 * 128 * 64 + 2 * 128
"""Weights of a decoder layer of `counts`."""


def case(
    mode: str, zero: int, gather: str, checkpointing: str, packs: int = 1, compile: str = "none"
) -> dict:
    words = [f"train.zero3_gather={gather}", f"train.activation_checkpointing={checkpointing}"]
    words += [f"batch.packs_per_forward={packs}", f"train.compile={compile}"]
    name = f"{mode}, ZeRO-{zero}, {gather}, checkpointing {checkpointing}, {packs} packs together"
    name += f", compiled {compile}"
    return {"name": name, "mode": mode, "zero": zero, "set": [*MODES[mode], *words]}


def curves(tiny_run, tmp_path, ranks: int, cases: list[dict]) -> dict:
    """What levers_worker.py found on so many ranks."""
    run = merged(tiny_run, {"train": {"steps": 20}, "batch": {"packs_per_step": 4}})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    files = [str(tmp_path / name) for name in ("run.yaml", "cases.json", "out.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--standalone", str(HERE / "levers_worker.py"), *files]
    process = run_command(command, timeout=900, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads((tmp_path / "out.json").read_text())


def assert_learns_what_plain_torch_does(results: dict) -> None:
    for name, found in results.items():
        pairs = list(zip(found["curve"], found["plain"], strict=True))
        loss = max(abs(one[0] - other[0]) / other[0] for one, other in pairs)
        norm = max(abs(one[1] - other[1]) / other[1] for one, other in pairs)
        print(f"{name}: losses differ by {loss:.1e}, gradient norms by {norm:.1e}")
        assert loss < LOSS_TOLERANCE, name
        assert norm < NORM_TOLERANCE, name
        assert found["trained_but_still"] == [], name
        assert found["frozen_but_moved"] == [], name


def test_whole_layers_and_partial_checkpointing_learn_what_plain_torch_does(tiny_run, tmp_path):
    cases = [case("full", 3, "layers", "1", packs=2)]
    assert_learns_what_plain_torch_does(curves(tiny_run, tmp_path, 2, cases))


SETTINGS = [
    *[(3, "layers", checkpointing) for checkpointing in ("none", "full", "1")],
    *[(3, "modules", "full"), (2, "layers", "none", 3), (2, "layers", "1")],
]


@pytest.mark.slow
def test_the_other_levers_learn_what_plain_torch_does(tiny_run, tmp_path):
    """Each setting that the fast test leaves out once, with the modes that it leaves out among them."""
    cases = [
        case("lora", 3, "layers", "none"),
        case("full", 3, "layers", "full"),
        case("frozen", 3, "modules", "full"),
        case("lora", 2, "layers", "none", packs=3),
        case("all", 2, "layers", "1"),
        case("full", 3, "layers", "1", compile="layers"),
    ]
    assert_learns_what_plain_torch_does(curves(tiny_run, tmp_path, 2, cases))


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_lever_in_every_mode_learns_what_plain_torch_does(tiny_run, tmp_path, ranks):
    cases = [case(mode, *setting) for mode in MODES for setting in SETTINGS]
    assert_learns_what_plain_torch_does(curves(tiny_run, tmp_path, ranks, cases))


def counts(launch, monkeypatch, tmp_path, sizes: dict, **train) -> list[dict]:
    """Of the two micro-batches of a step in which DeepSpeed knows the order of the modules; the
    second has the update.
    """
    monkeypatch.setenv("RECORD", str(tmp_path / "counts.json"))
    zero = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    live = {"stage3_max_reuse_distance": 0, "stage3_max_live_parameters": 5 * LAYER}
    zero["zero_optimization"] |= {**live, **sizes}
    (tmp_path / "zero.json").write_text(json.dumps(zero))
    run = {
        "name": "_".join(train.values()),
        "deepspeed": str(tmp_path / "zero.json"),
        "llm": {"architecture": {"num_hidden_layers": 8, "hidden_size": 128}},
        "train": {"steps": 5, **train},
        "validation": {"every": 1000},
    }
    process, _ = launch(2, run, module=[str(HERE / "counting_worker.py")])
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads((tmp_path / "counts.json").read_text())[6:8]


def test_a_micro_step_waits_for_nothing_and_gathers_each_layer_once_a_pass(
    launch, monkeypatch, tmp_path
):
    """Eight decoder layers, two ranks, DeepSpeed's sizes in the proportion that its defaults have to
    a 7B LLM (a quarter of a layer is fetched ahead, five layers are live, vectors are kept whole).
    Beside it the settings of before: modules, checkpointing.
    """
    now = {"zero3_gather": "layers", "activation_checkpointing": "none"}
    first, last = counts(launch, monkeypatch, tmp_path, {}, **now)
    before = {"zero3_gather": "modules", "activation_checkpointing": "full"}
    sizes = {"stage3_param_persistence_threshold": 128, "stage3_prefetch_bucket_size": LAYER // 4}
    modules = counts(launch, monkeypatch, tmp_path, sizes, **before)
    for name, line in (
        ("now", first),
        ("now", last),
        ("before", modules[0]),
        ("before", modules[1]),
    ):
        print(name, {**line, "hooks": sum(line["hooks"].values())})
    assert first["waits"] == {}
    assert first["control"] == {"_allgather_base_": 1}
    assert last["control"] == {}
    gathers = first["collectives"]["_allgather_base_"]
    assert gathers <= 2 * 8 + 6 + 2 * 2 + 6  # layers twice, blocks once, projector twice, the rest
    of_step = [
        sum(sum(x["collectives"].values()) for x in step) for step in ((first, last), modules)
    ]
    assert of_step[0] <= 0.5 * of_step[1]
    assert sum(first["hooks"].values()) <= 0.25 * sum(modules[0]["hooks"].values())
