"""Tiny real objects shared by the tests: a tokenizer, drawn images in MDS shards, a run file, a
launcher.
"""

import os
import resource
import sys
import threading
from pathlib import Path

import pytest
import yaml
from tiny import COLOURS, ROOT, merged, run_command, tiny_samples

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pytest_configure():
    """Limits and locks of the session."""
    from tqdm import tqdm

    # Readers hold their shared memory by descriptors until they are collected: more than 1,024 in a
    # whole session.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # tqdm's lock is shared with forked processes: one that a test kills while it holds it would
    # stop this one for ever.
    os.register_at_fork(after_in_child=lambda: tqdm.set_lock(threading.RLock()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Say which tests stay in one process where several run: those of a file, and of the folders
    whose tests share what takes long to make (trained checkpoints) or exists once (a Slurm).

    `--dist loadgroup` would say the same by marks, but does nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder in ("tests/convert", "tests/slurm") else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A byte-level BPE tokenizer of 400 tokens with a ChatML template, saved as a Hugging Face
    folder.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    texts = [
        f"A {colour} square. What colour is it? Describe the picture." for colour in COLOURS
    ] * 20
    bpe.train_from_iterator(texts, vocab_size=400, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pargo(tokenizer_folder):
    """(model, processor) of a tiny random ParGo, fp32."""
    from tiny_pargo import tiny_pargo

    return tiny_pargo(tokenizer_folder)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """A folder with MDS shards `train` (120 samples) and `validation` (20 samples)."""
    from pargo_ds.data.shards.mds import write_shards

    folder = tmp_path_factory.mktemp("shards")
    write_shards(tiny_samples(120), folder / "train", shard_bytes=1 << 14)
    write_shards(tiny_samples(20, first=1000), folder / "validation")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tokenizer_folder, tiny_shards) -> dict:
    """A run file's mapping: timm's smallest ViT, two projector layers, a random Llama of two
    layers, fp32.
    """
    return {
        "name": "tiny",
        "deepspeed": str(ROOT / "ds_configs/zero3.json"),
        "vision": {
            "library": "timm",
            "name": "test_vit",
            "weights": "random",
            "image_size": 64,
            "feature_norm": True,
        },
        "projector": {
            "partial_tokens": 8,
            "global_tokens": 2,
            "layers": 2,
            "width": 32,
            "heads": 4,
        },
        "llm": {
            "name": str(tokenizer_folder),
            "weights": "random",
            "architecture": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 400,
                "tie_word_embeddings": True,
            },
        },
        "train": {
            "projector": {"mode": "full", "lr": 3e-3},
            "llm": {"mode": "full", "lr": 1e-3, "weight_decay": 0.01},
            "steps": 4,
            "warmup_steps": 1,
            "precision": "fp32",
        },
        "batch": {"tokens_per_pack": 128, "images_per_pack": 6, "packs_per_step": 4},
        "data": {
            "train": str(tiny_shards / "train"),
            "validation": str(tiny_shards / "validation"),
            "text": "turns",
            "workers": 0,
        },
        "checkpoint": {"every": 1000},
        "validation": {"every": 1000, "packs": 4},
        "reporting": {"wandb": "disabled"},
    }


@pytest.fixture
def launch(tiny_run, tmp_path):
    """launch(ranks, changes, *arguments) trains the tiny run in subprocesses; returns (process, run
    folder).
    """

    def start(
        ranks: int,
        changes: dict | None = None,
        *arguments: str,
        output: Path = tmp_path,
        module=None,
    ):
        run = merged(tiny_run, {"output": str(output), **(changes or {})})
        run_file = tmp_path / f"{run['name']}.yaml"
        run_file.write_text(yaml.safe_dump(run))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        command += [
            "--standalone",
            *(module or ["-m", "pargo_ds.train"]),
            str(run_file),
            *arguments,
        ]
        return run_command(command), output / run["name"]

    return start
