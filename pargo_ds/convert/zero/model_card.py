"""README.md of an exported folder: what the model is, where every weight comes from, how to load it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pargo_ds.checkpoint.manifest import Manifest
from pargo_ds.config import PARTS, RunConfig

NOT_VERIFIED = "frozen weights were not verified: {} names none"
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
) -> str:
    """The card's text. No path of a machine stands in it, only last parts of paths.

    Args:
        manifest: of the checkpoint; None for DeepSpeed's own.
        step: optimizer steps, where the checkpoint says so.
        frozen: names of the frozen weights and, where the checkpoint has them, their hashes.
        dtype: of the weights, such as "bfloat16".
        lora: "merged", "apart", or None when there is none.
        not_verified: why the frozen weights were not compared with hashes; None when they were.
    """
    sections = [
        _header(run),
        _summary(run, lora),
        "## Use\n\n" + _usage(lora),
        "## Training\n\n" + _training(run, manifest, step, dtype),
        "## Weights that were not trained\n\n" + _frozen(run, frozen, not_verified),
    ]
    return "\n\n".join(sections) + "\n"


def _header(run: RunConfig) -> str:
    names = [name for name in (run.llm.name, run.vision.name if run.vision.weights is None else "") if is_on_hub(name)]
    bases = "".join(f"\n- {name}" for name in names)
    return (
        "---\n"
        "# license: fill in before publishing; the licences of the base models and of the data decide\n"
        "library_name: transformers\n"
        "pipeline_tag: image-text-to-text\n"
        + (f"base_model:{bases}\n" if bases else "")
        + f"tags:\n- pargo\n---\n# {run.name}: a ParGo model"
    )


def _summary(run: RunConfig, lora: str | None) -> str:
    projector = run.projector
    adapters = {
        "merged": " LoRA is merged into the LLM.",
        "apart": " The LLM's LoRA adapter lies in `adapter/` (peft).",
    }
    return (
        f"A partial-global projector ({projector.partial_tokens} partial + {projector.global_tokens} global tokens, "
        f'cascade "{projector.cascade}") between the vision encoder `{short(run.vision.name)}` and the language model '
        f"`{short(run.llm.name)}`, trained with pargo_ds." + adapters.get(lora or "", "")
    )


def _usage(lora: str | None) -> str:
    adapter = (
        """
from peft import PeftModel

PeftModel.from_pretrained(model.llm, f"{folder}/adapter")  # puts LoRA into model.llm
"""
        if lora == "apart"
        else ""
    )
    return f"""With torch, transformers, timm and pillow alone; the code in this folder is run:

```python
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder, or its name on the hub
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
{adapter}
picture = Image.open("picture.png").convert("RGB")
turns = [{{"role": "user", "content": "<image>\\nWhat is in this picture?"}}]
inputs = processor.apply_chat_template(
    turns, images=picture, add_generation_prompt=True, tokenize=True, return_tensors="pt"
)
with torch.no_grad():
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

Where pargo_ds is installed, `import pargo_ds.model` registers its classes and `trust_remote_code` can be left out."""


def _training(run: RunConfig, manifest: Manifest | None, step: int | None, dtype: str) -> str:
    rows = {
        "run": run.name,
        "step": f"{step:,}" if step is not None else "",
        "trained": ", ".join(f"{part} ({m})" for part in PARTS if (m := getattr(run.train, part).mode) != "frozen"),
        "precision": f"{run.train.precision} with fp32 master weights; saved here as {dtype}",
        "data": ", ".join(f"`{short(stream.path)}`" for stream in run.data.train),
        "started from": f"`{short(run.start_from)}`" if run.start_from else "",
    }
    if manifest is not None:
        rows |= {name.replace("_", " "): f"{int(value):,}" for name, value in manifest.totals.items() if value}
        rows["ranks and ZeRO stage"] = f"{manifest.world_size}, {manifest.zero_stage}"
        rows["versions"] = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return _table(rows)


def _frozen(run: RunConfig, frozen: Mapping[str, str | None], not_verified: str | None) -> str:
    if not frozen:
        return "There are none."
    sources = {
        "vision": (run.vision.weights or run.vision.name, None if run.vision.weights else run.vision.revision),
        "llm": (run.llm.name, run.llm.revision),
        "projector": ("", None),
    }
    rows = {}
    for part, (name, revision) in sources.items():
        own = sorted(f"{n} {h}" for n, h in frozen.items() if n.startswith(f"{part}."))
        if not own:
            continue
        source, revision = (run.start_from, None) if run.start_from else (name, revision)
        at = f" at revision `{revision}`" if revision else ""
        rows[part] = f"`{short(source)}`{at}; {len(own)} tensors"
        if not_verified is None:
            digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:32]
            rows[part] += f", hash of their hashes `{digest}`"
    proof = not_verified or "Their hashes are those that the run wrote into its checkpoint."
    return f"{_table(rows)}\n\n{proof[:1].upper()}{proof[1:].rstrip('.')}."


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def is_on_hub(name: str) -> bool:
    """Whether a name can be one of the hub's; folders of this machine are not."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def short(name: str) -> str:
    """A hub's name as it is, of a path its last part."""
    return name if is_on_hub(name) else Path(name.rstrip("/")).name
