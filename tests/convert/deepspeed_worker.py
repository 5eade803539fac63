"""Train a toy model with plain DeepSpeed and save it with engine.save_checkpoint, once for each
case that is asked for.

`torchrun deepspeed_worker.py OUT CASE...` writes OUT/CASE (what save_checkpoint makes: steps 1 and
2) and, by rank 0, OUT/CASE.safetensors: what the engine itself says that it holds after step 2. The
case `large` is one save of a stack of equal layers.
"""

import os
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file
from torch import nn

WIDTH, WORDS = 7, 11
LAYERS, LAYER_WIDTH = 4, 3000
SINGLE = {"data_types": {"grad_accum_dtype": "fp32"}}
CASES = {
    "zero0_fp32": (0, "fp32", {}, {}),
    "zero0_bf16": (0, "bf16", {}, {}),
    "zero1_fp32": (1, "fp32", {"parameter_alignment": True}, {}),
    "zero1_bf16": (1, "bf16", {}, {}),
    "zero1_bf16_optimizer": (1, "bf16", {}, SINGLE),
    "zero2_fp32": (2, "fp32", {"round_robin_gradients": True}, {}),
    "zero2_bf16": (2, "bf16", {}, {}),
    "zero2_bf16_trained": (2, "bf16", {}, {}),
    "zero3_fp32": (3, "fp32", {}, {}),
    "zero3_bf16": (3, "bf16", {"sub_group_size": 40}, {}),
    "zero3_bf16_trained": (3, "bf16", {}, {}),
}
"""Case -> ZeRO stage, precision, settings of zero_optimization, settings.

`trained`: without the frozen parameters.
"""


class Toy(nn.Module):
    """Frozen and trained parts, both with a tied pair; tensors of one and three elements; buffers
    of both kinds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.frozen_scale = nn.Parameter(torch.randn(1), requires_grad=False)
        self.frozen_again = self.frozen
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.between = nn.Sequential(nn.Linear(WIDTH, 5), nn.LayerNorm(5), nn.Linear(5, WIDTH))
        self.gate = nn.Parameter(torch.randn(1))
        self.shift = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.tensor([3, 2**40]))
        self.register_buffer("mean", torch.randn(2, 3))
        self.register_buffer("scratch", torch.randn(4), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        states = self.frozen_again(self.frozen(self.embed(words))) * self.frozen_scale
        states = states + self.between(states) * self.gate + self.shift.sum()
        return nn.functional.cross_entropy(self.head(states).float(), words.roll(1))


class Stack(nn.Sequential):
    """Equal layers, 34.3 MiB each in fp32: glibc gives back at once what is larger than 32 MiB."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(LAYER_WIDTH, LAYER_WIDTH, bias=False) for _ in range(LAYERS)))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return (
            super()
            .forward(torch.ones(1, LAYER_WIDTH, dtype=torch.bfloat16))
            .float()
            .square()
            .mean()
        )


def build(model: nn.Module, stage: int, precision: str, zero: dict, settings: dict):
    """An engine with two parameter groups, those that decay and those that do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
    ]
    groups = [group for group in groups if group["params"]]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, **zero},
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        **settings,
    }
    return deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=config
    )[0]


def held(engine) -> dict[str, torch.Tensor]:
    """Trained parameters in fp32 where the engine keeps them so, all else as it is, whole.

    Collective.
    """
    tensors = {
        name: buffer.clone() for name, buffer in engine.module.named_buffers() if name != "scratch"
    }
    masters = engine.bfloat16_enabled() and engine.zero_optimization_stage() > 0
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and masters:
            tensors[name] = safe_get_full_fp32_param(parameter).clone()
        else:
            with deepspeed.zero.GatheredParameters(
                [parameter], enabled=hasattr(parameter, "ds_id")
            ):
                tensors[name] = parameter.detach().clone()
    return tensors


def save(out: Path, case: str) -> None:
    torch.manual_seed(0)
    engine = build(Toy(), *CASES[case])
    generator = torch.Generator().manual_seed(deepspeed.comm.get_rank())
    for _ in range(2):
        engine.backward(engine(torch.randint(0, WORDS, (6,), generator=generator)))
        engine.step()
        engine.save_checkpoint(str(out / case), exclude_frozen_parameters=case.endswith("trained"))
    tensors = held(engine)
    if deepspeed.comm.get_rank() == 0:
        save_file(tensors, out / f"{case}.safetensors")


def save_large(folder: Path) -> None:
    engine = build(Stack(), 3, "bf16", {}, {})
    engine.backward(engine(torch.zeros(1)))
    engine.step()
    engine.save_checkpoint(str(folder))


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for chosen in sys.argv[2:]:
        if chosen == "large":
            save_large(Path(sys.argv[1]) / chosen)
        else:
            save(Path(sys.argv[1]), chosen)
    # At an ordinary exit gloo's threads abort the process now and then (seen in 2 of 8 runs of four
    # ranks on a busy machine), after all is written; ending at once leaves them no time.
    deepspeed.comm.barrier()
    sys.stdout.flush()
    os._exit(0)
