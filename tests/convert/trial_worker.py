"""What the trial before training says of every family that trains exactly, under the transformers
that is first on the path: `python trial_worker.py TOKENIZER OUT.json [NAME ...]`.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pargo_ds import assembly
from pargo_ds.config import parse_config
from pargo_ds.convert.trial.trial import try_export
from pargo_ds.errors import ConfigError
from tests.model.llm_families import FAMILIES, architecture

LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": "all-linear"}
MODES = {"full": {"mode": "full", "lr": 1e-3}, "lora": {"mode": "lora", "lr": 1e-3, "lora": LORA}}


def run_of(llm: Path, mode: str):
    """A run in bf16 on a folder that holds an LLM's configuration and tokenizer, and no weights."""
    return parse_config(
        {
            "name": "tried",
            "deepspeed": "unused",
            "vision": {
                "library": "timm",
                "name": "test_vit",
                "weights": "random",
                "image_size": 64,
            },
            "projector": {
                "partial_tokens": 4,
                "global_tokens": 2,
                "layers": 1,
                "width": 16,
                "heads": 2,
            },
            "llm": {"name": str(llm)},
            "train": {"projector": {"mode": "full", "lr": 1e-3}, "llm": MODES[mode], "steps": 1},
            "batch": {"tokens_per_pack": 64, "images_per_pack": 2, "packs_per_step": 1},
            "data": {"train": "unused", "text": "turns"},
        }
    )


def tried(name: str, tokenizer: Path, folder: Path) -> dict[str, str]:
    """mode -> "exported", or why not."""
    try:
        AutoConfig.for_model(**architecture(name) | {"vocab_size": 400}).save_pretrained(folder)
        shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
        assembly.prove_llm(run_of(folder, "full"), AutoConfig.from_pretrained(folder))
    except Exception as error:  # families that do not train anyway
        return dict.fromkeys(MODES, f"no training: {error}")
    said = {}
    for mode in MODES:
        run = run_of(folder, mode)
        try:
            said[mode] = try_export(run, assembly.build_processor(run))
        except ConfigError as error:
            said[mode] = f"refused: {error}"
    return {
        mode: "exported" if "reloaded and asked" in text else text for mode, text in said.items()
    }


def main() -> None:
    tokenizer, out, *names = sys.argv[1:]
    known = [
        n for n in FAMILIES if architecture(n)["model_type"] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ]
    with tempfile.TemporaryDirectory() as place:
        found = {
            name: tried(name, Path(tokenizer), Path(place) / str(number))
            for number, name in enumerate(names or known)
        }
    Path(out).write_text(
        json.dumps({"transformers": transformers.__version__, "families": found}, indent=1)
    )


if __name__ == "__main__":
    main()
