"""The names that the tensors of our model have in the authors' release (bytedance/ParGo@60b5bd0).

The names are taken from eval/init_models.py (the module tree),
pargo/backbone/language/qformer_bert.py (projector), pargo/backbone/vision/eva_vit.py (vision tower)
and InternLM2's modelling code (LLM). A canonical release name has no parts of the wrappers of
DeepSpeed (`module.`) and peft (`base_model.model.`, `.base_layer`, `.default`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pargo_ds.errors import CheckpointError

LLM, BERT, VISION = "llm_model.", "ParGo.bert.", "visual_encoder."
QUERIES, POSITIONS = "query_tokens", BERT + "embeddings.position_embeddings.weight"
LORA_A, LORA_B = "lora_A.weight", "lora_B.weight"
BERT_LAYER = re.compile(re.escape(BERT) + r"encoder\.layer\.(\d+)\.")
FUSED = re.compile(re.escape(LLM) + r"model\.layers\.\d+\.attention\.wqkv\.")

UNUSED = {
    r"visual_encoder\.(norm|head)\.(weight|bias)": "they come after the feature that ParGo takes",
    r"visual_encoder\.(blocks\.\d+\.attn\.)?rope\.freqs_(cos|sin)": "tables that the tower computes itself",
    r"ParGo\.bert\.embeddings\.(position_ids|word_embeddings\.weight)": "text is never fed to the projector",
    r"ParGo\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.(dense|LayerNorm)\.(weight|bias)": "its branch for text",
    r"ParGo\.cls\..+": "its language modelling head",
    r"ParGo\.bert\.encoder\.layer\.\d+\.(attention|crossattention)\.self\.key\.bias": (
        "it adds one number to all scores of a row, which the softmax cancels"
    ),
    r"llm_model\.model\.layers\.\d+\.attention\.rotary_emb\.\w+": "tables that the LLM computes itself",
}
"""Tensors of the release that our model does not need, and the reasons. All other tensors must be
mapped.
"""

_UNUSED = re.compile("|".join(UNUSED))
_PEFT_LORA = re.compile(r"\.(lora_[AB])\.default\.")

_VISION = (
    (".mlp.fc1_g.", ".mlp.w1."),
    (".mlp.fc1_x.", ".mlp.w2."),
    (".mlp.fc2.", ".mlp.w3."),
    (".mlp.norm.", ".mlp.ffn_ln."),
    (".attn.norm.", ".attn.inner_attn_ln."),
    (".attn.q_proj.bias", ".attn.q_bias"),
    (".attn.v_proj.bias", ".attn.v_bias"),
)
_LAYER = {
    "cascade": "attention.self.",
    "cascade.output": "attention.output.dense",
    "cascade_norm": "attention.output.LayerNorm",
    "perception": "crossattention.self.",
    "perception.output": "crossattention.output.dense",
    "perception_norm": "crossattention.output.LayerNorm",
    "ffn.0": "intermediate_query.dense",
    "ffn.2": "output_query.dense",
    "ffn_norm": "output_query.LayerNorm",
}
_LLM = {
    "self_attn.q_proj": "attention.wqkv",
    "self_attn.k_proj": "attention.wqkv",
    "self_attn.v_proj": "attention.wqkv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LLM_OUTSIDE = {
    "llm.model.embed_tokens.weight": LLM + "model.tok_embeddings.weight",
    "llm.model.norm.weight": LLM + "model.norm.weight",
    "llm.lm_head.weight": LLM + "output.weight",
}


def canonical(key: str) -> str:
    """Return the canonical name of a key in a file."""
    key = key.removeprefix("module.")
    if key.startswith(LLM):
        key = LLM + key.removeprefix(LLM).removeprefix("base_model.model.").replace(
            ".base_layer.", "."
        )
        key = _PEFT_LORA.sub(r".\1.", key)
    return key


def canonical_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the key in the file for each canonical name.

    Raises CheckpointError when two keys have the same canonical name.
    """
    names: dict[str, str] = {}
    for key in keys:
        name = canonical(key)
        if name in names:
            raise CheckpointError(
                f"{names[name]} and {key} are two names of {name}; only one of them can be right"
            )
        names[name] = key
    return names


def tower_names(keys: Iterable[str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return the key of each tensor of the vision tower, by its canonical release name, in a file
    of any of several projects.

    `wanted` maps release names to timm's names. A file may have either of them, alone or after the
    name of the encoder in the release, in EVA-CLIP (`visual.`), in open_clip (`visual.trunk.`) or
    in an export of this project (`vision.backbone.`).
    """
    known = set(keys)
    found: dict[str, str] = {}
    for release, timm in wanted.items():
        bare = release.removeprefix(VISION)
        forms = (
            release,
            bare,
            f"visual.{bare}",
            timm,
            f"visual.trunk.{timm}",
            f"vision.backbone.{timm}",
        )
        if held := [form for form in forms if form in known]:
            found[release] = held[0]
    return found


def is_unused(name: str) -> bool:
    """Whether a canonical release name is one of UNUSED."""
    return _UNUSED.fullmatch(name) is not None


def release_name(name: str) -> str:
    """Return the canonical release name of the tensor that contains our tensor `name`.

    Example: `projector.layers.0.ffn.0.weight` ->
    `ParGo.bert.encoder.layer.0.intermediate_query.dense.weight`.

    Raises:
        CheckpointError: the release has no such tensor.
    """
    part, _, rest = name.partition(".")
    if part == "vision":
        return _vision(rest)
    if part == "projector":
        return _projector(rest)
    if name in _LLM_OUTSIDE:
        return _LLM_OUTSIDE[name]
    match = re.fullmatch(r"llm\.model\.layers\.(\d+)\.(.+)\.weight", name)
    if match is None or match[2] not in _LLM:
        raise CheckpointError(f"the release has no counterpart of {name}")
    return f"{LLM}model.layers.{match[1]}.{_LLM[match[2]]}.weight"


def _vision(name: str) -> str:
    if name.startswith("feature_norm."):
        return name.replace("feature_norm", "ln_vision")
    name = name.removeprefix("backbone.")
    for ours, theirs in _VISION:
        name = name.replace(ours, theirs)
    return VISION + name


def _projector(name: str) -> str:
    if name == "tokens.weight":
        return QUERIES
    if name == "positions.weight":
        return POSITIONS
    module, _, kind = name.rpartition(".")
    if module == "token_norm":
        return f"{BERT}embeddings.LayerNorm.{kind}"
    if module == "output":
        return f"llm_proj.{kind}"
    number = inside = ""
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
        number, inside = match.groups()
    attention, _, projection = inside.partition(".")
    if inside in _LAYER:
        inside = _LAYER[inside]
    elif attention in ("cascade", "perception") and projection in ("query", "key", "value"):
        inside = _LAYER[attention] + projection
    else:
        raise CheckpointError(f"the release has no counterpart of projector.{name}")
    return f"{BERT}encoder.layer.{number}.{inside}.{kind}"
