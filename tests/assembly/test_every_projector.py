"""What every projector must do, whichever it is: one row for each file `projector_*.py`."""

from __future__ import annotations

import json
import re
import typing

import pytest
import torch
from clean_environment import clean_environment
from tiny import ROOT, draw, merged, seeing

from pargo_ds import assembly
from pargo_ds.assembly.calibration import calibrate
from pargo_ds.batch import Batch, pack
from pargo_ds.config import parse_config
from pargo_ds.convert.zero import zero_to_hf
from pargo_ds.errors import ConfigError
from pargo_ds.model import (
    ParGoForConditionalGeneration,
    build_projector,
    projector_config,
    projector_types,
)
from pargo_ds.projector_sections import AnyProjectorSection
from pargo_ds.training.dry_run import describe
from pargo_ds.training.optimizer import parameter_groups
from tests.convert.test_stand_alone import ENOUGH, answer_elsewhere, assert_same_as_here

TYPES = projector_types()
SECTIONS = {
    section.model_fields["type"].annotation.__args__[0]: section
    for section in typing.get_args(typing.get_args(AnyProjectorSection)[0])
}
PUBLISHED = {
    "pargo": 304, "linear": 576, "mlp": 576, "mlp_concat": 144, "qformer": 32, "resampler": 64,
    "honeybee_resampler": 64, "c_abstractor": 144, "d_abstractor": 144, "adaptive_pool": 144,
    "pixel_shuffle": 144, "patch_merger": 144, "ldpv2": 144, "token_packer": 144,
}  # fmt: skip
"""Visual tokens of 576 patches with the published options."""
DOCS = ROOT / "docs/models.md"
PATCHES = 16
"""Of the tiny run's encoder."""


def small(type: str, **options: object) -> dict[str, object]:
    """The run file's section of a small projector of a type, for few patches."""
    few = {"partial_tokens": 8, "global_tokens": 2} if type == "pargo" else {}
    if "tokens" in SECTIONS[type].model_fields:
        few = {"tokens": 9}
    config = projector_config({"type": type, **few}).tiny()
    keys = SECTIONS[type].model_fields.keys() - {"soft_prompt"}
    return {key: getattr(config, key) for key in keys} | options


def run_with(tiny_run: dict, type: str, **options: object):
    return parse_config({**tiny_run, "projector": small(type, **options)})


@pytest.fixture
def build(tiny_run):
    """Function (type, options) -> the tiny run's model with such a projector that sees."""

    def make(type: str, **options: object) -> ParGoForConditionalGeneration:
        run = run_with(tiny_run, type, **options)
        model = assembly.build_model(run, assembly.build_processor(run), settings=None)
        seeing(model.projector)
        return model.eval()

    return make


def images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_each_file_has_a_section_of_its_name():
    assert sorted(SECTIONS) == TYPES
    assert set(PUBLISHED) <= set(TYPES)


@pytest.mark.parametrize("type", TYPES)
def test_run_file_and_configuration_have_the_same_options_and_defaults(type):
    section = {} if type == "pargo" else {"type": type}
    said, config = SECTIONS[type](**section).model_dump(), projector_config({"type": type})
    assert said.pop("soft_prompt")  # which a configuration of transformers has off
    assert {key: getattr(config, key) for key in said} == said


@pytest.mark.parametrize(("type", "tokens"), PUBLISHED.items())
def test_published_options_give_the_published_number_of_tokens(type, tokens):
    config = projector_config({"type": type})
    assert config.visual_tokens(576) == tokens
    assert f"{config.title}: {tokens} visual tokens of 576 patches" in config.describe(576)


def test_what_the_documentation_says_of_a_type_is_true():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \| (.*)\|$", DOCS.read_text(), re.MULTILINE)
    assert len(rows) >= len(PUBLISHED)
    for type, tokens, options in rows:
        assert projector_config({"type": type}).visual_tokens(576) == int(tokens)
        said = {option.strip() for option in options.split(",")} - {""}
        assert said == SECTIONS[type].model_fields.keys() - {"type", "soft_prompt", "patch_norm"}


@pytest.mark.parametrize("type", TYPES)
def test_the_trials_small_copy_has_the_same_tokens(type):
    config = projector_config(small(type))
    assert config.tiny().visual_tokens(PATCHES) == config.visual_tokens(PATCHES)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("soft_prompt", [True, False])
def test_a_packed_batch_trains_every_weight_as_its_samples_alone(build, type, soft_prompt):
    model = build(type, soft_prompt=soft_prompt)
    tokens, image = model.config.visual_tokens, model.config.image_token_id
    assert model.projector(torch.zeros(1, PATCHES, 64)).shape == (1, tokens, 32)
    samples = [[5, *[image] * tokens, 6, 7], [8, *[image] * tokens, 9, 10, 11]]
    pixels = images(2)
    packed = torch.tensor([sum(samples, [])])
    bounds = torch.tensor([0, len(samples[0]), packed.shape[1]], dtype=torch.int32)
    labels = packed.masked_fill(packed == image, -100)
    output = model(input_ids=packed, labels=labels, pixel_values=pixels, cu_seqlens=bounds)
    alone = [
        model(input_ids=torch.tensor([ids]), pixel_values=pixels[n : n + 1]).logits
        for n, ids in enumerate(samples)
    ]
    logits = model(input_ids=packed, pixel_values=pixels, cu_seqlens=bounds).logits
    # Measured worst difference in float32: 2e-6.
    torch.testing.assert_close(logits, torch.cat(alone, 1), rtol=0, atol=2e-5)
    output.loss.backward()
    still = [
        name
        for name, p in model.projector.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or p.grad.abs().max() == 0
    ]
    assert still == []


@pytest.mark.parametrize("type", TYPES)
def test_saved_and_loaded_it_is_the_same_to_the_bit(build, type, tmp_path):
    model = build(type)
    model.save_pretrained(tmp_path)
    again = ParGoForConditionalGeneration.from_pretrained(tmp_path).eval()
    config, loaded = model.config.projector_config, again.config.projector_config
    assert loaded.__class__ is config.__class__
    here, there = (one.to_dict() for one in (config, loaded))
    assert here.pop("dtype") != there.pop("dtype")  # none before, that of the weights afterwards
    assert here == there
    assert again.projector.__class__ is model.projector.__class__
    ours, theirs = model.projector.state_dict(), again.projector.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # In new memory: a convolution adds in another order (2e-9) where a mapped file aligns its
    # weights otherwise.
    patches = torch.randn(2, PATCHES, 64).double()
    assert torch.equal(model.projector.double()(patches), again.projector.double()(patches))


@pytest.mark.parametrize("type", TYPES)
def test_dry_run_describes_it_and_counts_its_arithmetic(tiny_run, type):
    run = run_with(tiny_run, type)
    text = describe(run, 1, export_says=lambda: "not tried here")
    config = projector_config(run.projector.model_dump())
    assert f"# projector\n{config.describe(PATCHES)}\n" in text
    assert f"{config.visual_tokens(PATCHES)} visual tokens per image" in text
    assert assembly.visual_tokens(run) == config.visual_tokens(PATCHES)


@pytest.mark.parametrize("type", TYPES)
def test_calibration_and_learning_rates_reach_it(build, tiny_run, type):
    model = build(type)
    empty = pack([], 64)
    calibrate(model, [Batch(**{**vars(empty), "pixel_values": images(4)})], "cpu")
    assert not torch.equal(model.projector.patch_norm.weight, torch.ones(64))
    rates = {"output_lr": 9e-3, "soft_prompt_lr": 9e-2}
    run = parse_config(
        merged({**tiny_run, "projector": small(type)}, {"train": {"projector": rates}})
    )
    model.vision.requires_grad_(False)
    scale = {id(p): g["lr_scale"] for g in parameter_groups(model, run) for p in g["params"]}
    named = dict(model.projector.named_parameters())
    for name, parameter in named.items():
        kind = 30 if "soft_prompt" in name else 3 if name.startswith("output.") else 1
        assert scale[id(parameter)] == pytest.approx(kind), name
    assert "output.soft_prompt.weight" in named


@pytest.mark.parametrize("type", TYPES)
def test_with_a_soft_prompt_tokens_start_as_words_that_no_image_changes(type):
    torch.manual_seed(0)
    config = projector_config(small(type, soft_prompt=True, output_std=0.136))
    projector = build_projector(config, 48, 96, PATCHES)
    patches = torch.randn(4, PATCHES, 48)
    tokens = projector(patches)
    assert (tokens == tokens[:1]).all()
    assert tokens.std().item() == pytest.approx(0.136, rel=0.1)  # 384 numbers or more: 4 %
    weights = dict(projector.named_parameters())
    seed = torch.randn_like(tokens)
    first = torch.autograd.grad((tokens * seed).sum(), list(weights.values()), allow_unused=True)
    gradients = dict(zip(weights, first, strict=True))
    learn = {name for name, g in gradients.items() if g is not None and g.abs().max() > 0}
    assert {"output.linear.weight", "output.soft_prompt.weight"} <= learn
    assert all(name.startswith("output.") for name in learn)
    with torch.no_grad():  # after one update nothing else holds the rest at zero
        for name in learn:
            weights[name] -= 1e-3 * gradients[name].sign()
        for module in projector.modules():  # Deformable DETR's weights of points start at zero, too
            if module is not projector.output.linear and isinstance(module, torch.nn.Linear):
                module.weight += 1e-3 * torch.randn_like(module.weight)
    second = torch.autograd.grad((projector(patches) * seed).sum(), list(weights.values()))
    assert all(g.abs().max() > 0 for g in second)


@pytest.mark.parametrize("type", TYPES)
def test_it_computes_in_16_bits_and_all_its_weights_can_be_drawn_again(type):
    torch.manual_seed(0)
    projector = build_projector(projector_config(small(type)), 48, 96, PATCHES)
    owners = [m for m in projector.modules() if list(m.parameters(recurse=False))]
    assert all(hasattr(module, "reset_parameters") for module in owners)
    patches = torch.randn(2, PATCHES, 48)
    exact, rounded = projector(patches), projector.bfloat16()(patches.bfloat16())
    assert rounded.dtype == torch.bfloat16
    # Measured: 0.4 to 1.0 %.
    assert (exact - rounded).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("type", TYPES)
def test_a_norm_of_the_patches_is_the_published_form_on_normed_patches(type):
    torch.manual_seed(0)
    normed = build_projector(projector_config(small(type, patch_norm=True)), 12, 20, PATCHES)
    plain = build_projector(projector_config(small(type, patch_norm=False)), 12, 20, PATCHES)
    seeing(normed)
    for parameter in normed.patch_norm.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    norm = {f"patch_norm.{key}" for key in ("weight", "bias")}
    assert normed.state_dict().keys() - plain.state_dict().keys() == norm
    plain.load_state_dict({k: v for k, v in normed.state_dict().items() if k not in norm})
    patches = torch.randn(2, PATCHES, 12)
    found = normed(patches)
    if type == "adaptive_pool":  # whose norm lies behind the pooling
        expected = normed.output(normed.features(normed.patch_norm(_pooled(patches, 3))))
    else:
        expected = plain(normed.patch_norm(patches))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def _pooled(patches: torch.Tensor, side: int) -> torch.Tensor:
    grid = patches.reshape(2, 4, 4, -1).permute(0, 3, 1, 2)
    return torch.nn.AdaptiveAvgPool2d(side)(grid).flatten(2).transpose(1, 2)


def test_a_pack_that_holds_no_image_is_refused_where_the_patches_decide(tiny_run):
    raw = merged({**tiny_run, "projector": small("linear")}, {"batch": {"tokens_per_pack": 16}})
    run = parse_config(raw)  # whose file alone does not say how many patches there are
    with pytest.raises(ConfigError, match="cannot hold one image of 16 visual tokens"):
        assembly.build_processor(run)
    with pytest.raises(ConfigError, match="cannot hold one image of 16 visual tokens"):
        assembly.build_meta_model(run)


def test_another_projector_than_that_of_start_from_is_named(build, tiny_run, tmp_path):
    build("mlp").save_pretrained(tmp_path)
    run = parse_config({**tiny_run, "projector": small("linear"), "start_from": str(tmp_path)})
    with pytest.raises(ConfigError, match="projector.type is 'mlp' there, 'linear' in the run"):
        assembly.load_exported(run, None)


@pytest.mark.slow
@pytest.mark.parametrize("type", TYPES)
def test_it_trains_under_zero_3_on_two_ranks(launch, type):
    section = f"projector={json.dumps(small(type))}"  # in place of the tiny run's
    process, _ = launch(2, {"train": {"steps": 3}}, "--set", section)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A Python in which this package is not installed."""
    return clean_environment(tmp_path_factory.mktemp("clean") / "env", ENOUGH)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("type", TYPES)
def test_what_twenty_steps_made_answers_without_this_package(
    launch, type, elsewhere, red_square, tmp_path
):
    section = f"projector={json.dumps(small(type))}"
    process, run_dir = launch(2, {"train": {"steps": 20}}, "--set", section)
    assert process.returncode == 0, process.stderr[-3000:]
    zero_to_hf.convert(run_dir, tmp_path / "export")
    answer_elsewhere(elsewhere, red_square, [tmp_path / "export"], tmp_path / "home")
    assert_same_as_here(tmp_path / "export", red_square)


@pytest.fixture
def red_square(tmp_path):
    (tmp_path / "red.png").write_bytes(draw("red", 4))
    return tmp_path / "red.png"
