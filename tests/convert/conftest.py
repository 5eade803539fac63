"""Exported folders of tiny models, one per family of language models, and what megatron-core makes
of them.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from tiny import ROOT, merged, run_command, seeing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
)

from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.hf_to_megatron import to_megatron
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    vision_config_from_transformers,
)

FAMILIES = {
    "llama, tied, groups of 2": {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 2},
    "llama, untied, wide heads, bf16": {"model_type": "llama", "head_dim": 16, "dtype": torch.bfloat16},
    "qwen2, biases, tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 2},
    "qwen3, norms, groups of 2, wide heads": {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2},
    "llama 3 positions": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "max_position_embeddings": 16384,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}  # fmt: skip
UNTIED = "qwen3, norms, groups of 2, wide heads"
MEGATRON_MISSING = "megatron-core is not installed (pip install '.[megatron]')"
KEPT_AS = [{}, {"non_homogeneous_layers": True}, {"singleton_local_shards": True}]
"""Three ways in which megatron-core lays a model's layers out; the families take turns, saving is
slow.
"""


def write_export(
    folder: Path, tokenizer_folder: Path, family: dict, soft_prompt: bool = True
) -> Path:
    """A ParGo model with random weights everywhere, biases and norms included."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    processor = ParGoProcessor(tokenizer, image_size=32, visual_tokens=6)
    vocabulary = processor.image_token_id + processor.image_token_id % 2
    sizes = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    dtype = family.get("dtype", torch.float32)
    text = AutoConfig.for_model(**{**sizes, "tie_word_embeddings": False, **family, "dtype": dtype})
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    config = ParGoConfig(
        vision_config=vision_config_from_transformers(clip),
        text_config=text,
        projector_config={
            "partial_tokens": 4,
            "global_tokens": 2,
            "layers": 2,
            "width": 16,
            "heads": 2,
            "soft_prompt": soft_prompt,
        },
        image_token_id=processor.image_token_id,
    )
    torch.manual_seed(0)
    model = ParGoForConditionalGeneration(config).eval()
    seeing(model.projector)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=0.0 if "bias" in name else 1.0, std=0.2)
            else:
                parameter.normal_(std=0.06)
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_export(tokenizer_folder):
    """make_export(folder, family, soft_prompt) writes an exported folder of random weights."""
    return lambda folder, family, soft_prompt=True: write_export(
        folder, tokenizer_folder, family, soft_prompt
    )


@pytest.fixture(scope="session")
def exports(tmp_path_factory, tokenizer_folder) -> dict[str, Path]:
    """An exported folder for every family."""
    root = tmp_path_factory.mktemp("exports")
    return {
        name: write_export(root / str(i), tokenizer_folder, f)
        for i, (name, f) in enumerate(FAMILIES.items())
    }


@pytest.fixture(scope="session")
def checkpoints(exports, tmp_path_factory) -> dict[str, Path]:
    """The torch_dist checkpoint of every family."""
    root = tmp_path_factory.mktemp("torch_dist")
    folders = {name: root / str(i) for i, name in enumerate(exports)}
    for name, folder in folders.items():
        to_megatron(HFFolder(exports[name]), folder)
    return folders


@pytest.fixture(
    scope="session",
    params=[pytest.param(1, marks=pytest.mark.slow, id="TP 1"), pytest.param(2, id="TP 2")],
)
def by_megatron(request, checkpoints, tmp_path_factory) -> dict[str, Path]:
    """family -> folder with logits.safetensors and saved/, made by megatron-core at that
    parallelism.
    """
    if importlib.util.find_spec("megatron") is None:
        pytest.skip(MEGATRON_MISSING)
    root = tmp_path_factory.mktemp(f"megatron_{request.param}")
    jobs = [
        {"checkpoint": str(folder), "out": str(root / str(i)), "kept_as": KEPT_AS[i % 3]}
        for i, folder in enumerate(checkpoints.values())
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    worker = str(Path(__file__).with_name("megatron_worker.py"))
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(request.param),
    ]
    process = run_command([*launcher, worker, str(root / "jobs.json")], timeout=280)
    assert process.returncode == 0, process.stderr[-4000:]
    return {name: root / str(i) for i, name in enumerate(checkpoints)}


@pytest.fixture(scope="session")
def train(tiny_run, tmp_path_factory):
    """train(changes, ranks) trains the tiny run; returns the run's folder."""

    def start(changes: dict, ranks: int) -> Path:
        output = tmp_path_factory.mktemp("run")
        (output / "run.yaml").write_text(
            yaml.safe_dump(merged(tiny_run, {**changes, "output": str(output)}))
        )
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(ranks),
        ]
        process = run_command([*launcher, "-m", "pargo_ds.train", str(output / "run.yaml")])
        assert process.returncode == 0, process.stderr[-4000:]
        return output / "tiny"

    return start


@pytest.fixture(scope="session")
def lora_run(train) -> Path:
    """A run's folder: two ranks, ZeRO 3, bf16, LoRA in the LLM, tied embeddings."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
    llm = {"mode": "lora", "lr": 1e-1, "lora": lora, "weight_decay": 0.0}
    return train({"train": {"steps": 2, "precision": "bf16", "llm": llm}}, ranks=2)


@pytest.fixture(params=list(FAMILIES))
def family(request) -> str:
    """Name of one family in `exports`, `checkpoints` and `by_megatron`."""
    return request.param


@pytest.fixture
def export(exports, tmp_path) -> Path:
    """A copy of one exported folder (untied, three layers) to be damaged."""
    return Path(shutil.copytree(exports[UNTIED], tmp_path / "export"))


@pytest.fixture
def checkpoint(checkpoints, tmp_path) -> Path:
    """A copy of its torch_dist checkpoint."""
    return Path(shutil.copytree(checkpoints[UNTIED], tmp_path / "torch_dist"))


@pytest.fixture
def convert():
    """convert(*arguments) runs tools/convert_checkpoint.py in a process of its own."""
    return lambda *arguments: run_command(
        [sys.executable, str(ROOT / "tools/convert_checkpoint.py"), *map(str, arguments)]
    )


def write_llm(folder: Path, tokenizer_folder: Path, tied: bool, **sizes: int) -> Path:
    """A folder as the hub holds LLMs: bf16 in several files, with settings for generation."""
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = AutoConfig.for_model(
        "qwen2",
        **{**small, **sizes},
        num_key_value_heads=2,
        vocab_size=400,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9)
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


@pytest.fixture(scope="session")
def published_llm(tokenizer_folder, tmp_path_factory):
    """published_llm(tied, **sizes) -> its folder."""
    made = {}

    def make(tied: bool, **sizes: int) -> Path:
        key = (tied, *sizes.items())
        if key not in made:
            made[key] = write_llm(tmp_path_factory.mktemp("llm"), tokenizer_folder, tied, **sizes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def timm_file(tmp_path_factory) -> dict:
    """A vision section: timm's smallest ViT, fp32, with the head and norm that the tower leaves
    out.
    """
    path = tmp_path_factory.mktemp("vision") / "vit.safetensors"
    torch.manual_seed(2)
    save_file(timm.create_model("test_vit", num_classes=5, img_size=64).state_dict(), path)
    return {"library": "timm", "name": "test_vit", "weights": str(path)}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> dict:
    """A vision section: a folder that transformers wrote."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor"})
    )
    return {"library": "transformers", "name": str(folder), "feature_layer": -2}
