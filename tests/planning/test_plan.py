"""A plan of a real run file: what it counts equals what is measured, what does not fit is refused."""

from dataclasses import replace

import pytest
import torch
from tiny import ROOT, merged, tiny_samples
from torch.utils.flop_counter import FlopCounterMode

from pargo_ds import assembly
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.batch import pack
from pargo_ds.config import load_config, parse_config
from pargo_ds.data.conversation import encode
from pargo_ds.errors import ConfigError
from pargo_ds.model.llm import run_llm
from pargo_ds.planning import compute, plan, report, sweep
from pargo_ds.planning.gathers import replay
from pargo_ds.planning.hardware import GPUS, Network
from pargo_ds.planning.host import table_times
from pargo_ds.planning.load import Load, typical_load, with_rows_as_packs
from pargo_ds.planning.rehearsal import rehearse
from pargo_ds.planning.saved import saved_bytes
from pargo_ds.planning.subject import subject_of
from pargo_ds.training.recompute import Recompute

NETWORK = Network(400)


@pytest.fixture(scope="module")
def tiny(tiny_run):
    return subject_of(parse_config(tiny_run))


def test_flops_are_those_of_torchs_counter(tiny_run):
    """One sample, as torch counts the masked half of the squares too.."""
    run = parse_config(tiny_run)
    processor = assembly.build_processor(run)
    model = assembly.build_model(run, processor, None)
    apply_freezing(model, run.train)
    (sample,) = tiny_samples(1)
    batch = pack([encode(sample, sample.turns, processor, "here")], processor.image_size)
    with FlopCounterMode(display=False) as counter:
        model(**batch.model_inputs("cpu")).loss.backward()
    load = Load(batch.num_tokens, batch.num_images, batch.num_targets)
    subject = subject_of(run)
    found = compute.micro_flops(subject.flops, run, load, Recompute())
    assert sum(found.model.values()) == pytest.approx(counter.get_total_flops(), rel=0.1)
    assert found.model == found.hardware


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_saved_bytes_without_data_are_those_of_a_real_forward_pass(tiny_run, mode):
    """Exact: the same saved-tensor hooks on a real LLM of the same sizes."""
    train = {} if mode == "full" else {"llm": "frozen"}
    run = parse_config(merged(tiny_run, {"train": train}))
    model = assembly.build_model(run, assembly.build_processor(run), None)
    apply_freezing(model, run.train)
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    width, tokens = model.config.text_config.hidden_size, run.batch.tokens_per_pack
    embeds = torch.randn(1, tokens, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run_llm(model.llm, embeds).last_hidden_state.sum()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    layer, _ = saved_bytes(run, keeps_inputs=False)
    assert layer * 2 == pytest.approx(real, rel=0.02)
    assert saved_bytes(run, keeps_inputs=True)[0] >= layer


def test_what_is_whole_at_a_time_lies_between_the_largest_layer_and_the_model(tiny, tiny_run):
    first, later = replay(rehearse(parse_config(tiny_run)), plan.zero_sizes(tiny, 3, 2))
    assert 0 < first.most_live <= tiny.total
    assert sum(later.forward) + sum(later.backward) <= sum(first.forward) + sum(first.backward)


def test_a_run_that_does_not_fit_is_refused_in_one_sentence_with_what_would_fit(tiny):
    load = typical_load(tiny.run, tiny.visual_tokens, None, None)
    small = plan.Cluster(2, GPUS["l40s"], NETWORK, table_times("full"))
    others = plan.strategies(tiny, small, load)
    plan.check_fits(plan.asked_strategy(tiny, small, load), others, small)
    none = plan.Cluster(2, replace(GPUS["l40s"], memory_gib=1.0), NETWORK, table_times("full"))
    with pytest.raises(ConfigError, match="does not fit: ZeRO-3, 2 layers .* no ZeRO stage fits"):
        plan.check_fits(
            plan.asked_strategy(tiny, none, load), plan.strategies(tiny, none, load), none
        )


def test_a_plan_as_text_says_every_part(tiny):
    load = typical_load(tiny.run, tiny.visual_tokens, None, None)
    cluster = plan.Cluster(2, GPUS["h100"], NETWORK, table_times("full"))
    others = plan.strategies(tiny, cluster, load)
    text = report.plan_text(
        tiny, cluster, load, plan.asked_strategy(tiny, cluster, load), others, 2.0
    )
    for word in ("no GPU has confirmed it", "memory of a rank", "fragmentation", "micro-step: GPU",
                 "MFU", "bound by", "GPU-hours", "tokens", "kB a sample (of 120 samples here)",
                 "checkpoint:"):  # fmt: skip
        assert word in text
    assert [one.stage for one in others if one.fits] != []


def test_a_sweep_has_each_size_and_kind_of_scaling_and_draws_them(tiny_run, monkeypatch):
    run = parse_config(tiny_run)
    monkeypatch.setattr(sweep, "GPU_COUNTS", (1, 8, 1024))
    monkeypatch.setitem(sweep.SIZES, "1b", {**sweep.SIZES["1b"], "num_hidden_layers": 2})
    rows = sweep.sweep(sweep.variants([run], ["1B"]), GPUS["h100"], NETWORK, table_times)
    # 512 packs of strong scaling are too few for 1,024 ranks
    assert [(row.kind, row.gpus) for row in rows] == [
        *(("strong", 1), ("strong", 8)), *(("weak", 1), ("weak", 8), ("weak", 1024)),
    ]  # fmt: skip
    assert len(sweep.table(rows).splitlines()) == 6
    assert sweep.picture(rows, "here").startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="--sizes 3b is not known; expected some of 1b, 7b"):
        sweep.variants([run], ["3b"])
    with pytest.raises(ConfigError, match="two runs have one name"):
        sweep.variants([run, run], [])


@pytest.mark.slow
def test_full_size_run_files_are_planned_as_the_notes_measured_them():
    """Saved numbers of a decoder layer of Llama 7B: 128.9 KiB a token by torch's own linear layers,
    166.4 by DeepSpeed's under ZeRO-3 (measured on the meta device, rotary embeddings aside).
    """
    run = load_config(ROOT / "ds_configs/pretrain.yaml", [])
    for keeps_inputs, kib in ((False, 128.9), (True, 166.4)):
        layer, _ = saved_bytes(run, keeps_inputs)
        assert layer / 1024 / run.batch.tokens_per_pack == pytest.approx(kib, rel=0.01)


def test_packs_computed_together_are_planned_as_larger_ones(tiny_run):
    batch = {"packs_per_step": 8, "packs_per_forward": 2}
    run = with_rows_as_packs(parse_config(merged(tiny_run, {"batch": batch})), ranks=2)
    given = tiny_run["batch"]
    assert run.batch.tokens_per_pack == 2 * given["tokens_per_pack"]
    assert run.batch.images_per_pack == 2 * given["images_per_pack"]
    assert run.micro_batches(2) == run.check_ranks(2) == 2
    with pytest.raises(ConfigError, match="3 does not divide the 4 packs of a rank"):
        with_rows_as_packs(
            parse_config(merged(tiny_run, {"batch": {**batch, "packs_per_forward": 3}})), ranks=2
        )
