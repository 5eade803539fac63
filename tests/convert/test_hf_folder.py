"""An exported folder proves itself whole: damage of every kind is named before anything is read
from it or written.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ROOT, draw, merged

from pargo_ds import assembly
from pargo_ds.config import parse_config
from pargo_ds.convert.hf_folder import HFFolder, finish_folder, rehash
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.convert.megatron.megatron_to_hf import megatron_to_hf
from pargo_ds.convert.shipped_code import forget_code
from pargo_ds.convert.weight_files import INDEX, write_hf_weights
from pargo_ds.errors import CheckpointError
from pargo_ds.evaluation.exported import load_exported
from pargo_ds.files import sha256sums as folder_hashes
from pargo_ds.files.sha256sums import HASHES, check_hashes, listable_files, read_hashes

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)


@pytest.fixture
def whole(export) -> Path:
    """An export with its code and hashes, to be damaged."""
    finish_folder(export)
    return export


@pytest.fixture
def sharded(whole) -> Path:
    """The same in several weight files with an index."""
    source = HFFolder(whole)
    write_hf_weights(source, whole, file_bytes=40_000)
    (whole / WEIGHTS).unlink()
    finish_folder(whole)
    assert len(list(whole.glob("model-*.safetensors"))) > 2
    return whole


@pytest.fixture
def tool(monkeypatch):
    """tool(name, *arguments) runs a command line of tools/ in this process; returns its exit
    status.
    """

    def run(name: str, *arguments: object) -> int:
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        return module.main()

    return run


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def refused(folder: Path, out: Path) -> str:
    """What the converter says of a damaged folder; it writes nothing."""
    with pytest.raises(CheckpointError) as caught:
        to_megatron(HFFolder(folder), out)
    assert not [path for path in out.parent.iterdir() if out.name in path.name]
    return str(caught.value)


def test_a_whole_export_is_found_whole_by_us_and_by_sha256sum(whole):
    assert HFFolder(whole).checked
    assert set(read_hashes(whole)) == {path.name for path in whole.iterdir()} - {HASHES}
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", HASHES], cwd=whole, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(sharded, tmp_path, seed):
    drawn = random.Random(seed)
    names = listable_files(sharded)
    path = sharded / names[seed % len(names)]
    flip(path, drawn.randrange(path.stat().st_size * 8))
    said = refused(sharded, tmp_path / "out")
    assert f"altered: {path.name}" in said
    assert f"rehash {sharded}" in said


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_the_hashes_is_found(sharded, tmp_path, seed):
    flip(sharded / HASHES, random.Random(seed).randrange((sharded / HASHES).stat().st_size * 8))
    assert HASHES in refused(sharded, tmp_path / "out")


def test_truncated_missing_and_additional_weight_files_are_named_together(sharded, tmp_path):
    cut, gone, *_ = sorted(sharded.glob("model-*.safetensors"))
    os.truncate(cut, cut.stat().st_size - 7)
    gone.unlink()
    save_file(
        {"stray": torch.zeros(1)}, sharded / WEIGHTS
    )  # transformers would load it instead of the index
    said = refused(sharded, tmp_path / "out")
    assert f"altered: {cut.name}; missing: {gone.name}; not listed: {WEIGHTS}" in said


def test_a_damaged_index_and_a_damaged_configuration_are_named(sharded, tmp_path):
    (sharded / INDEX).write_text("{")
    config = json.loads((sharded / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (sharded / "config.json").write_text(json.dumps(config))
    assert f"altered: config.json, {INDEX}" in refused(sharded, tmp_path / "out")


@pytest.mark.parametrize("hashed", [True, False])
def test_pointers_of_git_lfs_are_named_as_such(sharded, tmp_path, hashed):
    if not hashed:
        (sharded / HASHES).unlink()
    first, second, *_ = sorted(path.name for path in sharded.glob("model-*.safetensors"))
    for name in (first, second, "tokenizer.json"):
        (sharded / name).write_text(POINTER)
    said = refused(sharded, tmp_path / "out")
    assert f"{first}, {second}, tokenizer.json were not downloaded" in said
    assert "git lfs pull" in said
    with pytest.raises(CheckpointError, match="git lfs pull"):
        rehash(sharded)


def test_a_download_that_stopped_is_named_without_hashes(sharded, tmp_path):
    (sharded / HASHES).unlink()
    last = sorted(sharded.glob("model-*.safetensors"))[-1]
    os.truncate(last, last.stat().st_size // 2)
    assert f"{last.name} cannot be read" in refused(sharded, tmp_path / "out")
    last.unlink()
    assert f"names {last.name}, which is not there; did a download stop?" in refused(
        sharded, tmp_path / "out"
    )


def change(folder: Path, name: str, new: str | torch.Tensor | None) -> None:
    """Drop a tensor (None), rename it (a string) or replace it."""
    tensors = load_file(folder / WEIGHTS)
    old = tensors.pop(name)
    if new is not None:
        tensors |= {new: old} if isinstance(new, str) else {name: new}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize(
    "new, said",
    [
        (None, "missing 1 (llm.model.norm.weight)"),
        ("llm.model.norm.wait", "unexpected 1 (llm.model.norm.wait)"),
        (torch.zeros(33), "llm.model.norm.weight [33] instead of [32]"),
    ],
)
def test_other_tensors_are_found_by_hash_and_by_name(whole, tmp_path, new, said, accepted):
    """Hashes that fit a wrong file do not make it right."""
    change(whole, "llm.model.norm.weight", new)
    if accepted:
        rehash(whole)
    assert (said if accepted else f"altered: {WEIGHTS}") in refused(whole, tmp_path / "out")


def test_a_card_and_hidden_files_may_change(whole):
    (whole / "README.md").write_text("my own words")
    (whole / ".gitattributes").write_text("*.safetensors filter=lfs")
    (whole / ".cache").mkdir()
    (whole / ".cache" / "model.safetensors").touch()
    (whole / "notes.txt").write_text("what I think of it")
    assert check_hashes(whole)


def test_a_change_that_was_meant_is_accepted_by_rehash(whole, tool, capsys):
    path = whole / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.5}))
    with pytest.raises(
        CheckpointError, match=r"altered: generation_config.json.*convert_checkpoint.py rehash"
    ):
        check_hashes(whole)
    assert tool("convert_checkpoint", "rehash", whole) == 0
    assert "files listed in SHA256SUMS" in capsys.readouterr().out
    assert check_hashes(whole)
    (whole / "config.json").write_text("{}")
    assert tool("convert_checkpoint", "rehash", whole) == 2
    assert "config.json describes a model of type None" in capsys.readouterr().err


def test_verify_says_where_it_could_not_check(whole, export, tool, capsys, tmp_path):
    unproven = tmp_path / "unproven"
    unproven.mkdir()
    for path in export.iterdir():
        if path.name != HASHES:
            (unproven / path.name).write_bytes(path.read_bytes())
    assert tool("convert_checkpoint", "verify", whole, unproven) == 0
    said = capsys.readouterr().out
    assert (
        f"{unproven} has no {HASHES}: whether its files are as they were exported could not be checked"
        in said
    )
    assert f"{whole} has no" not in said


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_a_flipped_bit_stops_evaluation_answers_and_a_new_run(
    whole, tiny_run, tool, capsys, tmp_path, name
):
    flip(whole / name, (whole / name).stat().st_size * 4)
    expected = f"altered: {name}"
    with pytest.raises(ValueError, match=expected):
        load_exported(whole, "cpu")
    (tmp_path / "image.png").write_bytes(draw("red", 0))
    assert tool("answer", whole, tmp_path / "image.png", "What is this?") == 1
    assert expected in capsys.readouterr().err
    assert tool("evaluate", whole, tiny_run["data"]["validation"]) == 2
    assert expected in capsys.readouterr().err
    run = parse_config(merged(tiny_run, {"start_from": str(whole)}))
    with pytest.raises(ValueError, match=expected):
        assembly.load_exported(run, None)
    if name != WEIGHTS:  # the processor comes first, and must not be read from a damaged file
        with pytest.raises(ValueError, match=expected):
            assembly.build_processor(run)


def test_ranks_share_the_hashing_and_miss_no_file(sharded):
    for name in listable_files(sharded):
        kept = (sharded / name).read_bytes()
        flip(sharded / name, 8)
        finders = []
        for share in range(3):
            try:
                check_hashes(sharded, share, 3)
            except CheckpointError as error:
                finders.append(str(error))
        assert len(finders) == 1
        assert f"altered: {name}" in finders[0]
        (sharded / name).write_bytes(kept)


def test_code_beside_the_weights_leaves_the_fingerprint_of_a_run_alone(whole, tiny_run):
    """A checkpoint still resumes when the export that it started from was written again, now with
    its code.
    """
    held = HFFolder(whole).config
    projector = {
        key: getattr(held.projector_config, key)
        for key in ("partial_tokens", "global_tokens", "layers", "soft_prompt")
    }
    changes = {
        "start_from": str(whole),
        "vision": {"name": held.vision_config.name, "image_size": 32},
        "projector": projector | {"width": 16, "heads": 2},
    }
    run = parse_config(merged(tiny_run, changes))
    with_code = assembly.load_exported(run, None)
    forget_code(whole)
    rehash(whole)
    without = assembly.load_exported(run, None)
    assert hasattr(with_code.config, "auto_map")
    assert not hasattr(without.config, "auto_map")
    assert assembly.model_fingerprint(with_code) == assembly.model_fingerprint(without)


def test_back_from_megatron_the_folder_is_whole_and_alone(whole, tmp_path):
    to_megatron(HFFolder(whole), tmp_path / "megatron")
    description = {path.name for path in (tmp_path / "megatron/pargo/huggingface").iterdir()}
    assert not [name for name in description if name.endswith(".py") or name == HASHES]
    megatron_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert HFFolder(tmp_path / "back").checked
    assert {path.name for path in (tmp_path / "back").iterdir()} == {
        path.name for path in whole.iterdir()
    }
    same = [
        name
        for name, digest in read_hashes(whole).items()
        if read_hashes(tmp_path / "back")[name] == digest
    ]
    assert {"config.json", "processor_config.json", "tokenizer.json", "modeling_pargo.py"} <= set(
        same
    )


def test_a_list_that_leaves_the_folder_is_refused(whole):
    text = (whole / HASHES).read_text()
    for name in ("../outside", "/etc/hostname"):
        (whole / HASHES).write_text(text + f"{'0' * 64}  {name}\n")
        with pytest.raises(
            CheckpointError, match=f"{HASHES} is damaged: line .* is not a hash and a file"
        ):
            check_hashes(whole)


def test_a_list_is_replaced_whole_or_not_at_all(whole, monkeypatch):
    before = (whole / HASHES).read_bytes()

    def fail(*_, **__):
        raise CheckpointError("unreadable")

    monkeypatch.setattr(folder_hashes, "_hash", fail)
    with pytest.raises(CheckpointError, match="unreadable"):
        rehash(whole)
    assert (whole / HASHES).read_bytes() == before


def test_an_adapter_beside_the_weights_is_part_of_the_answers_and_of_the_hashes(export):
    from peft import LoraConfig, get_peft_model

    plain, processor = load_exported(export, "cpu")
    adapted, _ = load_exported(export, "cpu")
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted.llm = get_peft_model(adapted.llm, lora)
    adapted.llm.save_pretrained(export / "adapter")
    finish_folder(export)
    asked = processor(text="What is this?", return_tensors="pt")
    with torch.no_grad():
        expected, without = adapted.eval()(**asked).logits, plain(**asked).logits
        found = load_exported(export, "cpu")[0](**asked).logits
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-5
    )  # measured: 7e-7; the adapter changes them by 1.0
    assert not torch.allclose(found, without, rtol=0, atol=1e-2)
    flip(export / "adapter/adapter_model.safetensors", 4000)
    with pytest.raises(CheckpointError, match="altered: adapter/adapter_model.safetensors"):
        load_exported(export, "cpu")
