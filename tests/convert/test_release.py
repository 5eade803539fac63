"""The authors' release becomes a folder of ours that computes the same."""

from __future__ import annotations

import os
import pickle
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import release_oracle as oracle
import tiny_release as tiny
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import ROOT, merged, run_command
from transformers import AutoModelForImageTextToText, AutoProcessor

from pargo_ds import assembly
from pargo_ds.config import parse_config
from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.release import keys as release_keys
from pargo_ds.convert.release.llm import LLMFolder, llama_config
from pargo_ds.convert.release.release_to_hf import release_to_hf
from pargo_ds.convert.release.tensor_files import TensorFiles
from pargo_ds.convert.release.weights import ReleaseFacts, ReleaseWeights
from pargo_ds.convert.verify import compare, load_model
from pargo_ds.errors import CheckpointError, ConfigError

FACTS = ReleaseFacts(tiny.PARTIAL, None, tiny.ALPHA, tiny.VISION)
# Measured in fp32 against the oracle in fp64: visual tokens of up to 4.2 at most 2.8e-6 apart,
# logits of up to 6.4 at most 3.5e-5 (the oracle computes rotary tables in fp64, Llama in fp32). The
# release's own classes, run once by hand, agree with the oracle within 1e-14 (projector), 5e-7
# (tower) and 1.3e-5 (LLM), their tables being fp32, too.
TOKENS_TOLERANCE, LOGITS_TOLERANCE = 1e-5, 1e-4
QUESTION = "What colour is the hat?"


def draw(max_positions: int = 512):
    """(config.json of the LLM, its weights, the whole release's state dict), the same every time."""
    torch.manual_seed(0)
    config = tiny.llm_config(tiny.VOCABULARY, max_positions)
    llm = tiny.llm_state(config)
    return config, llm, tiny.release_state(config, llm)


@pytest.fixture
def parts(tmp_path):
    """(config, state dict, path of the checkpoint, LLM folder without weights)."""
    config, _, state = draw()
    torch.save(dict(state), tmp_path / "release.pth")
    folder = tiny.write_llm_folder(tmp_path / "internlm2", config, None)
    return config, state, tmp_path / "release.pth", folder


def convert(checkpoint, folder, out, **options):
    return release_to_hf(checkpoint, out, str(folder), FACTS, **{"dtype": "float32", **options})


def weights(checkpoint, folder, dtype=torch.float32, merge_lora=False):
    return ReleaseWeights(
        checkpoint, LLMFolder(str(folder)), FACTS, dtype=dtype, merge_lora=merge_lora
    )


def ask(out: Path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    turns = [{"role": "user", "content": f"<image>{QUESTION}"}]
    processor = AutoProcessor.from_pretrained(out)
    return processor, processor.apply_chat_template(
        turns, images=image, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )


def expected(state, config, asked, image_token):
    """(visual tokens, logits) of the oracle in fp64."""
    w = {name: tensor.double() for name, tensor in state.items()}
    mean, std = (
        torch.tensor(x).double().view(1, 3, 1, 1) for x in ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    )
    tokens = oracle.visual_tokens(
        (asked["pixel_values"].double() / 255 - mean) / std, w, patch=tiny.PATCH, vision_heads=tiny.VISION_HEADS,
        pretrained_grid=tiny.PRETRAINED_GRID, partial=tiny.PARTIAL, heads=2,
    )  # fmt: skip
    ids = asked["input_ids"][0]
    is_image = ids == image_token
    embeds = w["llm_model.base_model.model.model.tok_embeddings.weight"][
        ids.masked_fill(is_image, 0)
    ].clone()
    embeds[is_image] = tokens[0]
    return tokens, oracle.internlm2(embeds[None], w, config, tiny.ALPHA / tiny.RANK)


@pytest.mark.parametrize("merge_lora", [True, False], ids=["merged", "adapter"])
@pytest.mark.parametrize("max_positions", [512, 128], ids=["plain positions", "dynamic NTK"])
def test_logits_equal_those_of_the_release(merge_lora, max_positions, tmp_path):
    config, llm, state = draw(max_positions)
    tiny.text_branch_state(state)
    torch.save(dict(state), tmp_path / "release.pth")
    folder, out = tiny.write_llm_folder(tmp_path / "internlm2", config, None), tmp_path / "out"
    convert(tmp_path / "release.pth", folder, out, merge_lora=merge_lora)
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    if not merge_lora:
        PeftModel.from_pretrained(model.llm, out / "adapter")
    processor, asked = ask(out)
    with torch.no_grad():
        tokens, logits = (
            model.eval().get_image_features(asked["pixel_values"]),
            model(**asked).logits,
        )
    their_tokens, their_logits = expected(state, config, asked, processor.image_token_id)
    apart = (
        float((tokens - their_tokens).abs().max()),
        float((logits[..., : tiny.VOCABULARY] - their_logits).abs().max()),
    )
    print(
        f"{asked['input_ids'].shape[1]} tokens: visual tokens {apart[0]:.1e}, logits {apart[1]:.1e} apart"
    )
    assert apart[0] < TOKENS_TOLERANCE
    assert apart[1] < LOGITS_TOLERANCE


def test_projector_equals_the_releases_in_float64(parts):
    """Tight enough to tell BERT's epsilon from another one; measured 1.3e-14."""
    _, state, checkpoint, folder = parts
    model = load_model(weights(checkpoint, folder)).double()
    features = torch.randn(2, tiny.PATCHES, tiny.VISION_WIDTH, dtype=torch.float64)
    w = {name: tensor.double() for name, tensor in state.items()}
    with torch.no_grad():
        found, theirs = (
            model.projector(features),
            oracle.projector(features, w, partial=tiny.PARTIAL, heads=2),
        )
    difference = float((found - theirs).abs().max())
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-12


def test_prompt_has_the_ids_of_the_release(parts, tmp_path):
    """init_models.py, context_embeds: bos, then the texts before and behind the image, each
    tokenised by itself.
    """
    *_, checkpoint, folder = parts
    convert(checkpoint, folder, tmp_path / "out")
    processor, asked = ask(tmp_path / "out")
    template = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <Img><ImageHere></Img> {} ASSISTANT: "
    )
    before, behind = (
        processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in template.format(QUESTION).split("<ImageHere>")
    )
    images = [processor.image_token_id] * tiny.TOKENS
    assert asked["input_ids"][0].tolist() == [1, *before, *images, *behind]


def test_the_llm_comes_from_its_folder_where_the_checkpoint_lacks_it(parts, tmp_path):
    config, llm, state = draw()
    *_, checkpoint, folder = parts
    without = {n: t for n, t in state.items() if not n.startswith("llm_model.") or "lora_" in n}
    save_file({n: t.contiguous() for n, t in without.items()}, tmp_path / "release.safetensors")
    torch.save(dict(llm), folder / "pytorch_model.bin")
    convert(checkpoint, folder, tmp_path / "one", merge_lora=True)
    convert(tmp_path / "release.safetensors", folder, tmp_path / "other", merge_lora=True)
    assert compare(HFFolder(tmp_path / "one"), HFFolder(tmp_path / "other")).fits()


def test_other_ways_of_saving_hold_the_same(parts, tmp_path):
    """Lightning's wrapper, DeepSpeed's prefix, peft before its base layers, no peft at all."""
    config, llm, state = draw()
    *_, checkpoint, folder = parts
    wanted = weights(checkpoint, folder)
    bare = tiny.release_state(config, llm, lora=False)
    forms = {
        "wrapped": {"state_dict": dict(state), "epoch": 3},
        "prefixed": {f"module.{name}": tensor for name, tensor in state.items()},
        "older": {name.replace(".base_layer", ""): tensor for name, tensor in state.items()},
        "bare": {name: state.get(name, tensor) for name, tensor in bare.items()},
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / f"{name}.pth")
        assert compare(wanted, weights(tmp_path / f"{name}.pth", folder)).fits(), name


def test_wqkv_is_split_by_group_and_so_are_loras_rows(parts):
    """Against rows picked one by one: four heads in two groups, head dimension 8."""
    config, state, checkpoint, folder = parts
    source = weights(checkpoint, folder)
    at = "llm_model.base_model.model.model.layers.1.attention.wqkv"
    fused, b = state[f"{at}.base_layer.weight"], state[f"{at}.lora_B.default.weight"]
    heads = {"q_proj": [0, 1, 4, 5], "k_proj": [2, 6], "v_proj": [3, 7]}
    for part, places in heads.items():
        rows = [8 * place + i for place in places for i in range(8)]
        assert torch.equal(source.read(f"llm.model.layers.1.self_attn.{part}.weight"), fused[rows])
        adapter = f"base_model.model.model.layers.1.self_attn.{part}"
        assert torch.equal(source.lora.read(f"{adapter}.lora_B.weight"), b[rows])
        assert torch.equal(
            source.lora.read(f"{adapter}.lora_A.weight"), state[f"{at}.lora_A.default.weight"]
        )


def test_every_tensor_of_the_release_is_mapped_or_named_as_unused(parts):
    config, state, checkpoint, folder = parts
    tiny.text_branch_state(state)
    source = weights(checkpoint, folder)
    used = {release_keys.release_name(name) for name in source.specs} | source.lora.wanted.keys()
    unused = {name for name in map(release_keys.canonical, state) if release_keys.is_unused(name)}
    assert used | unused == set(map(release_keys.canonical, state))
    assert not used & unused


def test_missing_unexpected_and_misshapen_tensors_are_named_together(parts, tmp_path):
    _, state, checkpoint, folder = parts
    del state["ParGo.bert.encoder.layer.1.crossattention.self.value.bias"]
    state["visual_encoder.blocks.7.norm1.weight"] = torch.zeros(32)
    state["llm_proj.weight"] = torch.zeros(32, 9)
    state["llm_model.base_model.model.model.layers.0.attention.wqkv.lora_B.default.weight"] = (
        torch.zeros(63, 3)
    )
    torch.save(dict(state), checkpoint)
    with pytest.raises(CheckpointError) as caught:
        convert(checkpoint, folder, tmp_path / "out")
    said = str(caught.value)
    assert "missing 1 (ParGo.bert.encoder.layer.1.crossattention.self.value.bias)" in said
    assert "unexpected 1 (visual_encoder.blocks.7.norm1.weight)" in said
    assert "llm_proj.weight [32, 9] instead of [32, 128]" in said
    assert (
        "llm_model.model.layers.0.attention.wqkv.lora_B.weight [63, 3] instead of [64, 3]" in said
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["query_tokens", "ParGo.bert.embeddings.position_embeddings.weight", "visual_encoder.pos_embed", "ln_vision.bias",
     "llm_model.base_model.model.model.layers.1.attention.wqkv.lora_A.default.weight",
     "llm_model.base_model.model.output.weight"],
)  # fmt: skip
def test_one_missing_tensor_is_named(name, parts):
    _, state, checkpoint, folder = parts
    del state[name]
    torch.save(dict(state), checkpoint)
    canonical = release_keys.canonical(name)
    with pytest.raises(
        CheckpointError, match="holds no weights" if "output" in name else canonical
    ):
        weights(checkpoint, folder)


TOWER = "visual_encoder."


@pytest.mark.parametrize("form", ["release, file", "EVA-CLIP", "timm", "export"])
def test_a_checkpoint_of_what_was_trained_takes_its_vision_tower_from_elsewhere(
    form, parts, tmp_path
):
    _, state, checkpoint, folder = parts
    whole = weights(checkpoint, folder)
    timm_names = {
        name: whole.read(name) for name in whole.specs if name.startswith("vision.backbone.")
    }
    tower = {name: tensor for name, tensor in state.items() if name.startswith(TOWER)}
    place = tmp_path / "tower"
    place.mkdir()
    if form == "timm":
        save_file(
            {n.removeprefix("vision.backbone."): t for n, t in timm_names.items()},
            place / "model.safetensors",
        )
    elif form == "export":
        save_file({**timm_names, "llm.lm_head.weight": torch.zeros(1)}, place / "model.safetensors")
    elif form == "EVA-CLIP":
        text = {"text.positional_embedding": torch.zeros(3)}
        torch.save(
            {**{n.replace(TOWER, "visual."): t for n, t in tower.items()}, **text},
            place / "EVA02_CLIP.pt",
        )
    else:
        place = place / "vision.pth"
        torch.save(tower, place)
    torch.save({n: t for n, t in state.items() if n not in tower}, tmp_path / "trained.pth")
    facts = replace(FACTS, vision_weights=place)
    found = ReleaseWeights(
        tmp_path / "trained.pth",
        LLMFolder(str(folder)),
        facts,
        dtype=torch.float32,
        merge_lora=False,
    )
    assert compare(whole, found).fits()
    assert f"its weights come from {place.name}" in found.assumed()[-1]


def test_what_the_checkpoint_does_not_say_is_reported_and_stands_in_the_card(parts, tmp_path):
    *_, checkpoint, folder = parts
    said = []
    convert(checkpoint, folder, tmp_path / "out", report=said.append)
    card = (tmp_path / "out/README.md").read_text()
    for assumed in (
        f"{tiny.PARTIAL} are partial of 19",
        "2 attention heads, of width 64",
        "1e-12",
        f"alpha {tiny.ALPHA}",
    ):
        assert assumed in "\n".join(said)
        assert assumed in card


def test_a_vision_tower_that_is_nowhere_or_in_part_is_named(parts, tmp_path):
    _, state, checkpoint, folder = parts
    torch.save({n: t for n, t in state.items() if not n.startswith(TOWER)}, checkpoint)
    with pytest.raises(CheckpointError, match="holds no vision tower .*--vision-weights"):
        weights(checkpoint, folder)
    for tower, said in (
        ({"other": torch.zeros(1)}, "missing .*visual_encoder.blocks.0"),
        ({}, "holds no weights"),
    ):
        place = tmp_path / f"tower{len(tower)}"
        place.mkdir()
        if tower:
            save_file(tower, place / "model.safetensors")
        with pytest.raises(CheckpointError, match=said):
            ReleaseWeights(
                checkpoint, LLMFolder(str(folder)), replace(FACTS, vision_weights=place), dtype=torch.float32,
                merge_lora=False,
            )  # fmt: skip


def test_a_strength_of_lora_that_is_none_is_refused(parts):
    *_, checkpoint, folder = parts
    with pytest.raises(CheckpointError, match="--lora-alpha 0: expected 1 or more"):
        ReleaseWeights(
            checkpoint,
            LLMFolder(str(folder)),
            replace(FACTS, lora_alpha=0),
            dtype=torch.float32,
            merge_lora=True,
        )


class Evil:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_not_run(parts, tmp_path):
    *_, folder = parts
    torch.save({"query_tokens": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"query_tokens": Evil(tmp_path / "ran")}))
    for name in ("evil.pth", "old.bin"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be loaded as tensors alone"):
            convert(tmp_path / name, folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bytes_left", [0, 100, -100])
def test_a_cut_checkpoint_is_named(bytes_left, parts):
    *_, checkpoint, folder = parts
    os.truncate(checkpoint, bytes_left % checkpoint.stat().st_size)
    with pytest.raises(CheckpointError, match="release.pth cannot be loaded"):
        weights(checkpoint, folder)


def test_a_flipped_bit_is_found_or_harmless(parts):
    """Harmless are the bits between the archive's parts; 150 places, half of them where tensors
    lie.
    """
    _, state, checkpoint, _ = parts
    body, said = checkpoint.read_bytes(), []
    places = random.Random(0)
    for _ in range(150):
        flipped = bytearray(body)
        flipped[places.randrange(len(body))] ^= 1 << places.randrange(8)
        checkpoint.write_bytes(flipped)
        try:
            files = TensorFiles([checkpoint])
        except CheckpointError as error:
            said.append(str(error))
            continue
        assert files.shapes.keys() == state.keys()
        assert all(torch.equal(files.read(name), state[name]) for name in state)
    assert len(said) > 75
    assert all("release.pth" in text for text in said)


def test_numbers_beside_the_tensors_are_refused_by_name(parts):
    _, state, checkpoint, folder = parts
    torch.save({**state, "optimizer_step": 7}, checkpoint)
    with pytest.raises(CheckpointError, match=r"no tensors: optimizer_step \(int\)"):
        weights(checkpoint, folder)


def test_values_that_half_precision_cannot_hold_are_named(parts, tmp_path):
    _, state, checkpoint, folder = parts
    state["llm_proj.weight"][3, 5] = 1e6
    torch.save(dict(state), checkpoint)
    with pytest.raises(
        CheckpointError, match="llm_proj.weight has values that torch.float16 cannot hold"
    ):
        convert(checkpoint, folder, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"model_type": "llama"}, "type llama"),
        ({"bias": True}, "bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_an_llm_that_llama_cannot_be_is_refused(change, said, tmp_path):
    folder = tiny.write_llm_folder(
        tmp_path / "llm", {**tiny.llm_config(tiny.VOCABULARY), **change}, None
    )
    with pytest.raises(CheckpointError, match=said):
        llama_config(folder / "config.json")


def test_the_command_writes_a_folder_that_generates(parts, tmp_path):
    *_, checkpoint, folder = parts
    worker = [sys.executable, str(Path(__file__).with_name("release_worker.py")), "release-to-hf"]
    command = [
        *worker,
        str(checkpoint),
        str(tmp_path / "out"),
        "--llm",
        str(folder),
        "--merge-lora",
        *tiny.FACTS,
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    process = run_command(command, PYTHONPATH=path)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "tensors" in process.stdout
    card = (tmp_path / "out/README.md").read_text()
    for assumed in (
        f"{tiny.PARTIAL} are partial",
        "2 attention heads, of width 64",
        f"alpha {tiny.ALPHA}",
        "epsilon 1e-12",
    ):
        assert assumed in process.stdout
        assert assumed in card
    command = [
        *worker[:-1],
        "verify",
        str(checkpoint),
        str(tmp_path / "out"),
        "--llm",
        str(folder),
        *tiny.FACTS,
    ]
    process = run_command(command, PYTHONPATH=path)
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    assert "all equal" in process.stdout
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.float16
    assert model.config.projector_config.norm == "post"
    processor, asked = ask(tmp_path / "out")
    assert model.generation_config.eos_token_id == processor.stop_token_ids == [2]
    found = model.float().generate(**asked, max_new_tokens=4, num_beams=2, do_sample=False)
    assert asked["input_ids"].shape[1] < found.shape[1]
    assert (tmp_path / "out/README.md").read_text().count("`cascade: release`") == 1
    with pytest.raises(CheckpointError, match="out exists; choose another folder or pass --force"):
        convert(checkpoint, folder, tmp_path / "out")


def test_training_starts_from_the_converted_release(parts, tiny_run, tmp_path):
    """The run file's options describe the same model; another norm would be another model."""
    *_, checkpoint, folder = parts
    convert(checkpoint, folder, tmp_path / "out", merge_lora=True)
    projector = {
        "partial_tokens": tiny.PARTIAL, "global_tokens": tiny.GLOBAL, "layers": tiny.LAYERS, "width": tiny.WIDTH,
        "heads": 2, "cascade": "release", "norm": "post", "norm_eps": 1e-12, "query_positions": True,
        "soft_prompt": False, "patch_norm": False,
    }  # fmt: skip
    run = merged(
        tiny_run,
        {
            "start_from": str(tmp_path / "out"),
            "vision": {"name": tiny.VISION, "image_size": tiny.IMAGE},
            "projector": projector,
        },
    )
    config = parse_config(run)
    model = assembly.build_model(config, assembly.build_processor(config), settings=None)
    source = weights(checkpoint, folder, merge_lora=True)
    assert all(
        torch.equal(tensor, source.read(name)) for name, tensor in model.state_dict().items()
    )
    config = parse_config(merged(run, {"projector": {"norm": "pre"}}))
    with pytest.raises(ConfigError, match="norm is 'post' there, 'pre' in the run file"):
        assembly.build_model(config, assembly.build_processor(config), settings=None)


def test_the_adapter_folder_is_peft_s(parts, tmp_path):
    *_, checkpoint, folder = parts
    convert(checkpoint, folder, tmp_path / "out", dtype="float16")
    saved = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert len(saved) == 2 * 3 * 2
    assert {t.dtype for t in saved.values()} == {torch.float16}
    with pytest.raises(CheckpointError, match="--merge-lora"):
        HFFolder(tmp_path / "out")
