"""What DeepSpeed's save_checkpoint wrote becomes the same Hugging Face folder as our checkpoint of
the same step.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pargo_ds.config import parse_config
from pargo_ds.convert.verify import compare, open_weights
from pargo_ds.convert.zero import zero_to_hf

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
CASES = [
    pytest.param(1, "bf16", {"mode": "frozen", "lr": None}, id="ZeRO 1, frozen LLM, bf16"),
    pytest.param(2, "fp32", {"mode": "full", "lr": 1e-2}, id="ZeRO 2, fp32"),
    pytest.param(3, "bf16", {"mode": "lora", "lr": 1e-1, "lora": LORA}, id="ZeRO 3, LoRA, bf16"),
]


@pytest.fixture
def train_plainly(launch, tmp_path, monkeypatch):
    """train_plainly(changes) trains two steps on two ranks: (run folder, folder with DeepSpeed's
    checkpoints).
    """

    def start(changes: dict) -> tuple[Path, Path]:
        plain = tmp_path / "plain"
        monkeypatch.setenv("PLAIN", str(plain))
        worker = [str(Path(__file__).with_name("plainly_saving_run.py"))]
        process, run = launch(2, changes, module=worker)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        return run, plain

    return start


@pytest.mark.slow
@pytest.mark.parametrize("stage, precision, llm", CASES)
def test_it_is_the_export_of_our_own_checkpoint(
    train_plainly, convert, tmp_path, stage, precision, llm
):
    zero = tmp_path / "zero.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    train = {
        "steps": 2,
        "warmup_steps": 0,
        "precision": precision,
        "llm": {"weight_decay": 0.0, **llm},
    }
    run, plain = train_plainly({"deepspeed": str(zero), "train": train})
    settings = parse_config(yaml.safe_load((tmp_path / "tiny.yaml").read_text()))
    zero_to_hf.convert(run, tmp_path / "ours", dtype=torch.float32)
    zero_to_hf.convert(plain / "all", tmp_path / "all", dtype=torch.float32, run=settings)
    by_hand = ("--run", tmp_path / "tiny.yaml", "--dtype", "fp32")
    process = convert("zero-to-hf", plain / "trained", tmp_path / "trained", *by_hand)
    assert process.returncode == 0, process.stderr
    assert compare(open_weights(run), open_weights(plain / "trained", run=settings)).fits()
    ours = tensors_of(tmp_path / "ours")
    assert any("lora_" in name for name in ours) == (llm["mode"] == "lora")
    for name in ("all", "trained"):
        theirs = tensors_of(tmp_path / name)
        assert theirs.keys() == ours.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == [], name


def tensors_of(export: Path) -> dict[str, torch.Tensor]:
    """Weights and, where there is one, the adapter's."""
    return {
        key: tensor
        for path in export.rglob("*.safetensors")
        for key, tensor in load_file(path).items()
    }
