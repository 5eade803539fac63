"""Add up the gradients of a bf16 step of several packs under ZeRO 2 and 3, and beside them in fp32.

accumulation_worker.py RUN.yaml OUT.json: OUT has, for stages and words of train.gradient_accumulation, the
relative distance of DeepSpeed's sum from an fp32 sum of the same bf16 gradients.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_grad
from levers_worker import CPU, all_packs, build
from tiny import ROOT

from pargo_ds import distributed
from pargo_ds.config import load_config
from pargo_ds.training import engine as engines
from pargo_ds.training.inputs import device_inputs


def distance(run):
    """Of the gradient that the engine would step with, after all packs of a step."""
    settings = engines.deepspeed_settings(run, 1)
    model = build(run)
    engine = engines.build_engine(model, run, settings)
    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    sums = dict.fromkeys(trained, 0.0)

    def add(name):
        def hook(gradient):
            sums[name] = sums[name] + gradient.detach().float()

        return hook

    for name, parameter in trained.items():
        parameter.register_hook(add(name))
    packs = run.batch.packs_per_step
    for number, batch in enumerate(all_packs(run)[:packs]):
        loss = engine(**device_inputs(batch, model, CPU), num_items_in_batch=1.0).loss
        engine.backward(loss)
        if number < packs - 1:
            engine.step()
    found = {name: safe_get_full_grad(p) for name, p in trained.items()}
    engine.destroy()
    off = sum(float((found[name].float() - sums[name]).square().sum()) for name in trained)
    return (off / sum(float(one.square().sum()) for one in sums.values())) ** 0.5


def main(run_file, out):
    engines.start_distributed()
    results = {}
    for stage, word in ((2, "auto"), (3, "auto"), (3, "bf16")):
        sets = [f"train.gradient_accumulation={word}", "train.precision=bf16"]
        run = load_config(run_file, [*sets, f"deepspeed={ROOT}/ds_configs/zero{stage}.json"])
        results[f"{stage} {word}"] = distance(run)
    Path(out).write_text(json.dumps(results))
    distributed.close_process_group()


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
