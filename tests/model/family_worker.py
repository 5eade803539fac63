"""Packed against alone for every family, under the transformers that is first on the path:
`python family_worker.py OUT.json [NAME ...]`.

For each family: ParGo's packed logits, loss and gradients against transformers' own forward of each
sample alone (its eager attention, in float64, float32 where a family has parts that know no other).
"""

import copy
import json
import sys
import warnings

import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    vision_config_from_transformers,
)
from pargo_ds.model.packing import PackingError
from tests.model.llm_families import FAMILIES, VOCABULARY, architecture

LENGTHS = [6, 1, 9, 12]


def tiny_pargo(text_config) -> ParGoConfig:
    clip = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    projector = {"partial_tokens": 4, "global_tokens": 2, "layers": 2, "width": 16, "heads": 2}
    return ParGoConfig(
        vision_config=vision_config_from_transformers(clip),
        text_config=text_config,
        image_token_id=VOCABULARY,
        projector_config=projector,
    )


def drawn(llm: torch.nn.Module) -> torch.nn.Module:
    """Weights at which every layer matters and nothing is symmetric."""
    generator = torch.Generator().manual_seed(1)
    for parameter in llm.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise if parameter.ndim >= 2 else parameter.data + 0.1 * noise
    return llm.eval()


def truth_of(llm, samples: list[torch.Tensor]):
    """Logits of each sample alone by transformers, and the LLM that gave them."""
    reference = copy.deepcopy(llm)
    try:
        reference.set_attn_implementation("eager")
    except ValueError:
        reference = copy.deepcopy(llm)
    return torch.cat(
        [reference(input_ids=ids, use_cache=False).logits[0] for ids in samples]
    ), reference


def compare(name: str) -> dict:
    text_config = AutoConfig.for_model(**architecture(name))
    torch.manual_seed(0)
    try:
        llm = drawn(AutoModelForCausalLM.from_config(text_config))
    except Exception as error:
        return {
            "verdict": "broken",
            "why": f"transformers cannot build it ({type(error).__name__}: {error})",
        }
    config = tiny_pargo(text_config)
    samples = [torch.randint(3, VOCABULARY, (1, length)) for length in LENGTHS]
    seen = torch.randn(sum(LENGTHS), VOCABULARY, dtype=torch.float64)
    try:
        truth, reference = truth_of(llm.double(), samples)
        wanted = gradients(truth, seen, reference)
    except RuntimeError:
        truth, reference = truth_of(llm.float(), samples)
        wanted = gradients(truth, seen, reference)
    model = ParGoForConditionalGeneration(config, llm=llm).to(truth.dtype).eval()
    row, bounds = torch.cat(samples, 1), torch.tensor([0, *LENGTHS]).cumsum(0).int()
    try:
        road = model.packing(max(LENGTHS)).road
    except PackingError as error:
        return {"verdict": "refused", "why": str(error)}
    packed = model(input_ids=row, cu_seqlens=bounds).logits[0, :, :VOCABULARY]
    found = gradients(packed, seen, model.llm)
    loss = model(input_ids=row, labels=row.clone(), cu_seqlens=bounds).loss
    parts = truth.split(LENGTHS)
    losses = [
        F.cross_entropy(p[:-1], i[0, 1:], reduction="sum")
        for p, i in zip(parts, samples, strict=True)
    ]
    targets = sum(LENGTHS) - len(LENGTHS)
    return {
        "verdict": "exact",
        "road": road,
        "logits": off(packed, truth),
        "gradients": max(off(found[key], wanted[key]) for key in wanted),
        "loss": abs(float(loss.detach()) - float(sum(losses).detach()) / targets),
    }


def gradients(logits, seen, llm) -> dict[str, torch.Tensor]:
    names = {name: p for name, p in llm.named_parameters() if p.requires_grad}
    values = torch.autograd.grad((logits * seen).sum(), list(names.values()), allow_unused=True)
    zero = {name: torch.zeros_like(p) for name, p in names.items()}
    return {n: zero[n] if v is None else v for n, v in zip(names, values, strict=True)}


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference per unit of the largest wanted number (at least 1)."""
    return float((found - wanted).detach().abs().max()) / max(
        1.0, float(wanted.detach().abs().max())
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    for name in sys.argv[2:] or FAMILIES:
        kind = architecture(name)["model_type"]
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            results[name] = {"verdict": "unknown"}
            continue
        try:
            results[name] = compare(name)
        except Exception as error:
            results[name] = {"verdict": "failed", "why": f"{type(error).__name__}: {error}"}
    with open(sys.argv[1], "w") as file:
        json.dump({"transformers": transformers.__version__, "families": results}, file, indent=1)


if __name__ == "__main__":
    main()
