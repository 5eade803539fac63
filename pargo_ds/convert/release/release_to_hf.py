"""Convert the authors' released checkpoint to a Hugging Face folder.

LoRA is written beside the model as a folder of peft (`adapter/`), or merged into the LLM.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from pargo_ds.convert.hf_folder import finish_folder
from pargo_ds.convert.release.llm import LLMFolder
from pargo_ds.convert.release.lora import PARTS, ReleaseLora
from pargo_ds.convert.release.weights import ReleaseFacts, ReleaseWeights
from pargo_ds.convert.weight_files import write_hf_weights, write_safetensors
from pargo_ds.convert.weights import progress, total_bytes
from pargo_ds.files.whole_output import check_free_to_write, whole_output

log = logging.getLogger("pargo_ds")
ADAPTER = "adapter"
LORA_DROPOUT = 0.05
"""The dropout of LoRA in the release; only further training uses it."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def release_to_hf(
    checkpoint: Path,
    out: Path,
    llm: str,
    facts: ReleaseFacts,
    *,
    revision: str | None = None,
    dtype: str = "float16",
    merge_lora: bool = False,
    force: bool = False,
    report: Callable[[str], object] = log.info,
) -> int:
    """Write the folder `out`, which is whole or absent. Return the number of tensors of the model.

    `llm` is InternLM2's folder or hub name (at `revision`), with configuration, tokenizer, and the
    weights that the checkpoint lacks. `report` is called with a sentence for each assumption.
    Raises CheckpointError naming what does not fit.
    """
    sources = [
        checkpoint,
        *(path for path in (Path(llm), facts.vision_weights) if path and path.exists()),
    ]
    check_free_to_write(out.absolute(), force=force, sources=sources)
    source = ReleaseWeights(
        checkpoint, LLMFolder(llm, revision), facts, dtype=DTYPES[dtype], merge_lora=merge_lora
    )
    apart = None if merge_lora else source.lora
    needed = total_bytes(source.specs.values())
    if apart:
        needed += total_bytes(apart.specs.values())
    for said in source.assumed():
        report(f"assumed: {said}")
    with whole_output(out, force=force, needed=needed, sources=sources) as aside:
        source.write_description(aside)
        hashes = write_hf_weights(source, aside)
        if apart:
            write_adapter(apart, aside / ADAPTER)
        (aside / "README.md").write_text(model_card(source, apart is not None), encoding="utf-8")
        finish_folder(aside, hashes)
    return len(source.specs)


def write_adapter(lora: ReleaseLora, folder: Path) -> None:
    """Write LoRA as peft saves it; `PeftModel.from_pretrained(model.llm, folder)` loads it."""
    from peft import LoraConfig

    folder.mkdir()
    LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=LORA_DROPOUT, target_modules=list(PARTS)
    ).save_pretrained(str(folder))
    with progress("adapter", total_bytes(lora.specs.values())) as advance:
        write_safetensors(folder / "adapter_model.safetensors", lora.specs, lora, advance)


def model_card(source: ReleaseWeights, apart: bool) -> str:
    """Return the README.md of the converted folder."""
    projector, lora = source.config.projector_config, ""
    if source.lora:
        place = f"lies in `{ADAPTER}/` (peft)" if apart else "is merged into the LLM"
        lora = f"LoRA of rank {source.lora.rank} and alpha {source.lora.alpha} on query, key and value {place}.\n"
    assumed = "\n".join(f"- {said}" for said in source.assumed())
    imports = load = ""
    if apart:
        imports = "from peft import PeftModel\n"
        load = f'PeftModel.from_pretrained(model.llm, "FOLDER/{ADAPTER}")'
        load += "  # puts LoRA into model.llm\n"
    return f"""---
library_name: transformers
pipeline_tag: image-text-to-text
---
# ParGo: the authors' release, converted

Weights of `{source.where.name}` (github.com/bytedance/ParGo, BSD-3-Clause) with the language model
`{Path(source.llm.source).name}` as a Llama, converted by pargo_ds: {projector.partial_tokens} partial and
{projector.global_tokens} global tokens, {projector.layers} layers of width {projector.width}, vision encoder
`{source.config.vision_config.name}`. The release's mask has no cascade (`cascade: release`). {lora}
The checkpoint does not say the following; it was assumed:

{assumed}

```python
{imports}from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("FOLDER", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("FOLDER", trust_remote_code=True)
{load}```

The authors evaluate with beam search: `num_beams=4, max_new_tokens=100`.
"""
