"""The README.md of an exported folder. It says what the model is, where its weights come from, and
how to load it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pargo_ds.checkpoint.manifest import Manifest
from pargo_ds.config import RunConfig
from pargo_ds.train_sections import PARTS

NOT_VERIFIED = "frozen weights were not verified: {} names none"
LOAD_ADAPTER = """
from peft import PeftModel

PeftModel.from_pretrained(model.llm, f"{folder}/adapter")  # puts LoRA into model.llm
"""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    run: RunConfig,
    *,
    manifest: Manifest | None,
    step: int | None,
    frozen: Mapping[str, str | None],
    dtype: str,
    lora: str | None,
    not_verified: str | None,
    projector: str,
) -> str:
    """Return the text of the card. It contains only the last parts of paths of this machine.

    Args:
        manifest: the manifest of the checkpoint; None for a checkpoint of DeepSpeed alone.
        step: number of optimizer steps, if it is known.
        frozen: names of the frozen weights, with their hashes if the checkpoint has them.
        dtype: type of the weights, such as "bfloat16".
        lora: "merged" or "separate"; None for a model without LoRA.
        projector: a description in one line (ProjectorConfig.describe).
        not_verified: why the frozen weights were not compared with hashes; None if they were.
    """
    sections = [
        _header(run),
        _summary(run, lora, projector),
        "## Use\n\n" + _usage(lora),
        "## Training\n\n" + _training(run, manifest, step, dtype),
        "## Weights that were not trained\n\n" + _frozen(run, frozen, not_verified),
    ]
    return "\n\n".join(sections) + "\n"


def _header(run: RunConfig) -> str:
    names = [run.llm.name]
    if run.vision.weights is None:
        names.append(run.vision.name)
    names = [name for name in names if is_on_hub(name)]
    bases = ""
    if names:
        bases = "base_model:" + "".join(f"\n- {name}" for name in names) + "\n"
    return (
        "---\n"
        "# license: fill in before publishing; the licences of the base models and of the data decide\n"
        "library_name: transformers\n"
        "pipeline_tag: image-text-to-text\n"
        f"{bases}"
        f"tags:\n- pargo\n---\n# {run.name}: a ParGo model"
    )


def _summary(run: RunConfig, lora: str | None, projector: str) -> str:
    adapters = {
        "merged": " LoRA is merged into the LLM.",
        "separate": " The LLM's LoRA adapter lies in `adapter/` (peft).",
    }
    return (
        f"A projector between the vision encoder `{short(run.vision.name)}` and the language model "
        f"`{short(run.llm.name)}`, trained with pargo_ds.{adapters.get(lora or '', '')}\n\n"
        f"{projector[:1].upper()}{projector[1:]}."
    )


def _usage(lora: str | None) -> str:
    adapter = LOAD_ADAPTER if lora == "separate" else ""
    return f"""With torch, transformers, timm and pillow alone; the code in this folder is run:

```python
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
{adapter}
image = Image.open("image.png").convert("RGB")
turns = [{{"role": "user", "content": "<image>\\nWhat is in this image?"}}]
inputs = processor.apply_chat_template(
    turns, images=image, add_generation_prompt=True, tokenize=True, return_tensors="pt"
)
with torch.no_grad():
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Where pargo_ds is installed, `import pargo_ds.model` registers its classes and `trust_remote_code` can be left out."""


def _training(run: RunConfig, manifest: Manifest | None, step: int | None, dtype: str) -> str:
    modes = {part: getattr(run.train, part).mode for part in PARTS}
    trained = [f"{part} ({mode})" for part, mode in modes.items() if mode != "frozen"]
    rows = {"run": run.name}
    if step is not None:
        rows["step"] = f"{step:,}"
    rows["trained"] = ", ".join(trained)
    rows["precision"] = f"{run.train.precision} with fp32 master weights; saved here as {dtype}"
    rows["data"] = ", ".join(f"`{short(stream.path)}`" for stream in run.data.train)
    if run.start_from:
        rows["started from"] = f"`{short(run.start_from)}`"
    if manifest is not None:
        for name, value in manifest.totals.items():
            if value:
                rows[name.replace("_", " ")] = f"{int(value):,}"
        rows["ranks and ZeRO stage"] = f"{manifest.world_size}, {manifest.zero_stage}"
        versions = [f"{name} {version}" for name, version in manifest.versions.items()]
        rows["versions"] = ", ".join(versions)
    return _table(rows)


def _frozen(run: RunConfig, frozen: Mapping[str, str | None], not_verified: str | None) -> str:
    if not frozen:
        return "There are none."
    sources: dict[str, tuple[str, str | None]] = {
        "vision": (run.vision.name, run.vision.revision),
        "llm": (run.llm.name, run.llm.revision),
        "projector": ("", None),
    }
    if run.vision.weights:
        sources["vision"] = run.vision.weights, None
    if run.start_from:
        sources = dict.fromkeys(sources, (run.start_from, None))
    rows = {}
    for part, (source, revision) in sources.items():
        own = sorted(f"{n} {h}" for n, h in frozen.items() if n.startswith(f"{part}."))
        if not own:
            continue
        rows[part] = f"`{short(source)}`"
        if revision:
            rows[part] += f" at revision `{revision}`"
        rows[part] += f"; {len(own)} tensors"
        if not_verified is None:
            digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:32]
            rows[part] += f", hash of their hashes `{digest}`"
    proof = not_verified or "Their hashes are those that the run wrote into its checkpoint."
    return f"{_table(rows)}\n\n{proof[:1].upper()}{proof[1:].rstrip('.')}."


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(
        [
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in rows.items() if value),
        ]
    )


def is_on_hub(name: str) -> bool:
    """Whether a name may be that of a model on the hub and is no folder of this machine."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def short(name: str) -> str:
    """Return the name of a model on the hub unchanged, and the last part of a path."""
    if is_on_hub(name):
        return name
    return Path(name.rstrip("/")).name
