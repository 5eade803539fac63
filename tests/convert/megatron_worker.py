"""Run by torch.distributed.run: load checkpoints into real GPTModels, compute logits, save the
models again.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

TOKENS = torch.arange(3, 40).view(1, -1) * 7 % 391


class NoGenerators:
    """Megatron keeps CUDA's random states; on a CPU there are none."""

    def fork(self, *_):
        return contextlib.nullcontext()

    def get_states(self):
        return {}


def run_on_cpu() -> None:
    """What megatron-core takes for granted and a machine without GPU lacks."""
    from megatron.core.tensor_parallel import random

    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.synchronize = lambda *_, **__: None
    random.initialize_rng_tracker()
    random._CUDA_RNG_STATE_TRACKER = NoGenerators()


def load(folder: str, ranks: int):
    """The GPTModel of a checkpoint, built and loaded by the code in docs/conversion.md."""
    text = (Path(__file__).parents[2] / "docs/conversion.md").read_text()
    blocks = [part.partition("```")[0] for part in text.split("```python\n")[1:]]
    (code,) = (block for block in blocks if "GPTModel(" in block)
    on_cpu = {"use_cpu_initialization": True, "gradient_accumulation_fusion": False}
    names = {"folder": folder, "parallel": {"tensor_model_parallel_size": ranks, **on_cpu}}
    exec(compile(code, "docs/conversion.md", "exec"), names)
    return names["model"].eval()


@torch.no_grad()
def logits_of(model, ranks: int) -> torch.Tensor:
    length = TOKENS.shape[1]
    above = torch.ones(1, 1, length, length).triu(1).bool()
    mine = model(TOKENS, torch.arange(length).view(1, -1), above).contiguous()
    parts = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(parts, mine)
    return torch.cat(parts, dim=-1)


def main() -> None:
    warnings.simplefilter("ignore")
    run_on_cpu()
    dist.init_process_group("gloo")
    from megatron.core import dist_checkpointing, parallel_state

    ranks = dist.get_world_size()
    parallel_state.initialize_model_parallel(ranks)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        model = load(job["checkpoint"], ranks)
        out = Path(job["out"])
        logits = logits_of(model, ranks)
        if dist.get_rank() == 0:
            (out / "saved").mkdir(parents=True)
            save_file({"logits": logits.contiguous(), "tokens": TOKENS}, out / "logits.safetensors")
        dist.barrier()
        dist_checkpointing.save(
            model.sharded_state_dict(metadata=job["kept_as"]), str(out / "saved")
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
