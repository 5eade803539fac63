"""Host time of a micro-step: what a rank's Python spends around the arithmetic, before and now.

A twin of the model has its depth and tiny widths, so that its arithmetic takes next to no time and
what is left is the host's part: DeepSpeed's hooks, its bookkeeping, autograd. It is measured in
process CPU time, in turns, one process for each system; nothing of it needs a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pargo_ds.config import RunConfig, parse_config
from pargo_ds.errors import MachineFault

SYSTEMS: dict[str, dict[str, Any]] = {
    "ZeRO-3 before": {"zero": 3, "gather": "modules", "checkpointing": "full"},
    "ZeRO-3": {"zero": 3, "gather": "layers", "checkpointing": "none"},
    "ZeRO-3, checkpointing": {"zero": 3, "gather": "layers", "checkpointing": "full"},
    "ZeRO-2 before": {"zero": 2, "gather": "modules", "checkpointing": "full"},
    "ZeRO-2": {"zero": 2, "gather": "layers", "checkpointing": "none"},
    "plain torch": {"zero": 0, "gather": "modules", "checkpointing": "none"},
}
"""Name -> its settings; `before` is what both shipped run files asked for until these levers."""
WIDTH, VOCABULARY, TOKENS = 128, 256, 24
"""The LLM's matrices must be larger than the projector's and the encoder's, as they are at full
size, or ZeRO-3 would keep them whole."""
WARM_UP = 4
"""Micro-steps before the first turn: DeepSpeed records the order of modules in two of them."""


@dataclass(frozen=True)
class HostTime:
    """CPU milliseconds of a micro-step: the median of the turns, the least and the most."""

    median: float
    least: float
    most: float


def measure(
    layers: int, llm: str, turns: int, steps: int, systems: list[str]
) -> dict[str, HostTime]:
    """Measure each system's host time in `turns` turns of `steps` micro-steps; `llm` is frozen or
    full.

    Raises MachineFault when a process fails.
    """
    context = multiprocessing.get_context("spawn")
    taken: dict[str, list[float]] = {name: [] for name in systems}
    pipes: dict[str, Connection] = {}
    workers = []
    try:
        for name in systems:
            pipes[name], theirs = context.Pipe()
            arguments = (theirs, layers, llm, SYSTEMS[name])
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            workers[-1].start()
            theirs.close()  # or the end of the process would not be noticed
            pipes[name].recv()  # ready
        for _ in range(turns):
            for name, pipe in pipes.items():
                pipe.send(steps)
                taken[name].append(pipe.recv())
    except EOFError:
        raise MachineFault(f"the process of '{name}' has failed; what it said is above") from None
    finally:
        for worker in workers:
            worker.kill()
    found = {}
    for name, times in taken.items():
        found[name] = HostTime(statistics.median(times), min(times), max(times))
    return found


def twin_run(layers: int, llm: str, system: dict[str, Any]) -> RunConfig:
    """Return the run file of a twin with `layers` decoder layers."""
    trained: Any = "frozen" if llm == "frozen" else {"mode": "full", "lr": 1e-4}
    return parse_config(
        {
            "name": "twin",
            "deepspeed": f"ds_configs/zero{system['zero'] or 2}.json",
            "vision": {
                "library": "timm",
                "name": "test_vit",
                "weights": "random",
                "image_size": 64,
            },
            "projector": {
                **{"partial_tokens": 8, "global_tokens": 2},
                **{"layers": 2, "width": 32, "heads": 4},
            },
            "llm": {
                "name": "twin",
                "weights": "random",
                "architecture": {
                    "model_type": "llama",
                    "hidden_size": WIDTH,
                    "intermediate_size": WIDTH,
                    "num_hidden_layers": layers,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "vocab_size": VOCABULARY,
                },
            },
            "train": {
                "projector": {"mode": "full", "lr": 1e-4},
                "llm": trained,
                "steps": 1,
                "activation_checkpointing": system["checkpointing"],
                "zero3_gather": system["gather"],
            },
            "batch": {"tokens_per_pack": 64, "images_per_pack": 1, "packs_per_step": 10**6},
            "data": {"train": "none", "text": "turns"},
        }
    )


def _work(pipe: Connection, layers: int, llm: str, system: dict[str, Any]) -> None:
    """A process: prepares one system, then takes micro-steps as often as it is asked to."""
    import torch

    from pargo_ds.assembly.configs import model_config
    from pargo_ds.assembly.freezing import apply_freezing
    from pargo_ds.batch import Encoded, pack
    from pargo_ds.model import ParGoForConditionalGeneration
    from pargo_ds.training import engine, recompute
    from pargo_ds.training.inputs import device_inputs

    os.environ.pop("WORLD_SIZE", None)
    device = engine.start_distributed()
    torch.set_num_threads(1)
    run = twin_run(layers, llm, system)
    config = model_config(run, None, offline=True)
    model = ParGoForConditionalGeneration(config).train()
    model.to(torch.bfloat16)
    model.to(device)
    apply_freezing(model, run.train)
    settings = engine.deepspeed_settings(run, 1)
    # At full size only vectors lie below DeepSpeed's default threshold, here everything would.
    vectors = {"stage3_param_persistence_threshold": WIDTH}
    settings["zero_optimization"] |= vectors if system["gather"] == "modules" else {}
    recompute.apply(model, recompute.decide(run, model, settings, device))
    visual = [config.image_token_id] * config.visual_tokens
    text = list(range(TOKENS - len(visual)))
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    batch = pack(
        [Encoded(sample_id="0", input_ids=visual + text, labels=visual + text, pixels=pixels)], 64
    )
    module: Any = model
    if system["zero"]:
        module = engine.build_engine(model, run, settings)

    def micro_step() -> None:
        loss = module(**device_inputs(batch, model, device), num_items_in_batch=1.0).loss
        if system["zero"]:
            module.backward(loss)
            module.step()
        else:
            loss.backward()

    for _ in range(WARM_UP):
        micro_step()
    pipe.send("ready")
    while True:
        steps = pipe.recv()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.process_time()
        for _ in range(steps):
            micro_step()
        pipe.send((time.process_time() - started) / steps * 1e3)
