"""Train a tiny model on hand-made packs once for each case, and once in plain torch; write what came out.

levers_worker.py RUN.yaml CASES.json OUT.json: a case has `name`, `set` (overrides of the run file) and `zero` (2 or 3).
ZeRO-3 gives back each weight at once: by its own sizes it would keep such small models whole between the passes.
OUT has for each case the losses and gradient norms of 20 steps, those of plain torch on all packs, and the names of
parameters that moved and that did not.
"""

import json
import sys
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from tiny import ROOT, seeing, tiny_samples

from pargo_ds import assembly, distributed
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.assembly.zero import whole_weight
from pargo_ds.batch import fill, join, pack, split_into_rows
from pargo_ds.config import load_config
from pargo_ds.data.conversation import encode
from pargo_ds.training import engine as engines
from pargo_ds.training import recompute
from pargo_ds.training.inputs import device_inputs
from pargo_ds.training.optimizer import parameter_groups

STEPS, PACKS = 20, 4
CPU = torch.device("cpu")


def build(run):
    """The run's model, the same at each call, with a projector that sees."""
    model = assembly.build_model(run, assembly.build_processor(run), None)
    torch.manual_seed(1)
    seeing(model.projector)
    apply_freezing(model, run.train)
    return model.train()


def all_packs(run):
    """24 packs of two samples; among them some without images."""
    processor = assembly.build_processor(run)
    samples = [encode(s, s.turns, processor, "here") for s in tiny_samples(48)]
    return [pack(samples[i : i + 2], processor.image_size) for i in range(0, 48, 2)]


def packs_of(packs, step):
    return [packs[(step * PACKS + i) % len(packs)] for i in range(PACKS)]


def plain(run, packs):
    """Losses and gradient norms of torch alone, every pack on this rank."""
    model = build(run)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, run), betas=run.train.betas, eps=run.train.eps
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    curve = []
    for step in range(STEPS):
        batches = packs_of(packs, step)
        targets = float(sum(batch.num_targets for batch in batches))
        loss = 0.0
        for batch in batches:
            part = model(**batch.model_inputs("cpu"), num_items_in_batch=targets).loss
            part.backward()
            loss += float(part.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(trained, run.train.clip_norm))
        optimizer.step()
        optimizer.zero_grad()
        curve.append((loss, norm))
    return curve


def whole(engine):
    """All weights, whole, by name."""
    weights = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            weights[name] = safe_get_full_fp32_param(parameter).clone()
        else:
            with whole_weight(parameter):
                weights[name] = parameter.detach().float().clone()
    return weights


def with_deepspeed(run, packs, case):
    """The same with the engine, each rank its share of the packs."""
    ranks, rank = distributed.world_size(), distributed.rank()
    model = build(run)
    settings = engines.deepspeed_settings(run, ranks)
    recompute.apply(model, recompute.decide(run, model, settings, CPU))
    if case["zero"] == 3:
        settings["zero_optimization"]["stage3_max_reuse_distance"] = 0
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = engines.build_engine(model, run, settings, backend="aot_eager")
    curve = []
    for step in range(STEPS):
        batches = packs_of(packs, step)
        targets = float(sum(batch.num_targets for batch in batches))
        mine = batches[rank::ranks]
        rows = split_into_rows(mine, run.batch.packs_per_forward)
        share = targets / (ranks * len(rows))
        loss = 0.0
        for row in map(join, rows):
            if run.train.compile == "layers":
                row = fill(row, run.batch.tokens_per_row, run.batch.tokens_per_pack)
            inputs = device_inputs(row, model, CPU)
            part = engine(**inputs, num_items_in_batch=share).loss
            engine.backward(part)
            engine.step()
            loss += float(part.detach()) * share
        loss = distributed.all_reduce([loss], "cpu")[0] / targets
        curve.append((loss, float(engine.get_global_grad_norm())))
    found = whole(engine)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    moved = {name for name, weight in found.items() if not torch.equal(weight, start[name])}
    engine.destroy()
    return curve, sorted(trained - moved), sorted(moved - trained)


def main(run_file, cases_file, out):
    engines.start_distributed()
    curves, results = {}, {}
    for case in json.loads(Path(cases_file).read_text()):
        zero = f"deepspeed={ROOT}/ds_configs/zero{case['zero']}.json"
        run = load_config(run_file, [*case["set"], zero])
        packs, mode = all_packs(run), case["mode"]
        if mode not in curves:
            curves[mode] = plain(run, packs)
        curve, still, touched = with_deepspeed(run, packs, case)
        results[case["name"]] = {
            "plain": curves[mode],
            "curve": curve,
            "trained_but_still": still,
            "frozen_but_moved": touched,
        }
    if distributed.is_main():
        Path(out).write_text(json.dumps(results))
    distributed.close_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
