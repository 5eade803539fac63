"""The authors' release in tiny: a checkpoint with every key name that its code makes, and
InternLM2's folder.

Names are those of bytedance/ParGo@60b5bd0 (eval/init_models.py, eva_vit.py, qformer_bert.py) and of
InternLM2 inside peft. Importing this registers a tiny EVA-02 with timm, of the release's options
(eva_vit.py: create_eva_vit).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.eva import Eva, _cfg, _create_eva

VISION = "eva02_tiny_release"
IMAGE, PATCH, BLOCKS, VISION_WIDTH, VISION_HEADS, VISION_INNER = 32, 4, 2, 32, 2, 85
PRETRAINED_GRID = 4  # pt_hw_seq_len: 16 in the release, for images of 24 x 24 patches
PARTIAL, GLOBAL, LAYERS, WIDTH, INNER, POSITIONS = 16, 3, 2, 128, 96, 40
RANK, ALPHA = 3, 12
PATCHES, TOKENS = (IMAGE // PATCH) ** 2, PARTIAL + GLOBAL
FACTS = ["--partial-tokens", str(PARTIAL), "--lora-alpha", str(ALPHA), "--vision", VISION]

default_cfgs = generate_default_cfgs(
    {
        f"{VISION}.test": _cfg(
            input_size=(3, IMAGE, IMAGE),
            num_classes=24,
            mean=(0.48, 0.46, 0.41),
            std=(0.27, 0.26, 0.28),
        )
    }
)


@register_model
def eva02_tiny_release(pretrained: bool = False, **kwargs: Any) -> Eva:
    """timm's eva02_large_patch14_clip_336, smaller."""
    sizes = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": VISION_WIDTH, "depth": BLOCKS}
    options = {
        "num_heads": VISION_HEADS, "mlp_ratio": 4 * 2 / 3, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True,
        "scale_attn_inner": True, "use_rot_pos_emb": True, "ref_feat_shape": (PRETRAINED_GRID, PRETRAINED_GRID),
        "global_pool": kwargs.pop("global_pool", "token"),
    }  # fmt: skip
    return _create_eva(VISION, pretrained=pretrained, **{**sizes, **options, **kwargs})


class Drawn(dict):
    """A state dict that fills itself: weights, biases and norms away from their neutral values."""

    def linear(self, name: str, rows: int, columns: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = torch.randn(rows, columns) * (1.5 / columns**0.5)
        if bias:
            self[f"{name}.bias"] = 0.3 * torch.randn(rows)

    def norm(self, name: str, width: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = 1 + 0.3 * torch.randn(width)
        if bias:
            self[f"{name}.bias"] = 0.3 * torch.randn(width)


def vision_state(state: Drawn) -> None:
    grid = IMAGE // PATCH
    at = "visual_encoder"
    state[f"{at}.cls_token"] = torch.randn(1, 1, VISION_WIDTH)
    state[f"{at}.pos_embed"] = torch.randn(1, PATCHES + 1, VISION_WIDTH)
    state[f"{at}.patch_embed.proj.weight"] = torch.randn(VISION_WIDTH, 3, PATCH, PATCH) / 5
    state[f"{at}.patch_embed.proj.bias"] = torch.randn(VISION_WIDTH)
    ropes = [f"{at}.rope", *(f"{at}.blocks.{n}.attn.rope" for n in range(BLOCKS))]
    for rope in ropes:
        state[f"{rope}.freqs_cos"] = torch.randn(grid * grid, VISION_WIDTH // VISION_HEADS)
        state[f"{rope}.freqs_sin"] = torch.randn(grid * grid, VISION_WIDTH // VISION_HEADS)
    for n in range(BLOCKS):
        block = f"{at}.blocks.{n}"
        for norm in ("norm1", "norm2", "attn.inner_attn_ln"):
            state.norm(f"{block}.{norm}", VISION_WIDTH)
        state.norm(f"{block}.mlp.ffn_ln", VISION_INNER)
        for part in ("q_proj", "k_proj", "v_proj"):
            state.linear(f"{block}.attn.{part}", VISION_WIDTH, VISION_WIDTH, bias=False)
        state[f"{block}.attn.q_bias"], state[f"{block}.attn.v_bias"] = torch.randn(2, VISION_WIDTH)
        state.linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        state.linear(f"{block}.mlp.w1", VISION_INNER, VISION_WIDTH)
        state.linear(f"{block}.mlp.w2", VISION_INNER, VISION_WIDTH)
        state.linear(f"{block}.mlp.w3", VISION_WIDTH, VISION_INNER)
    state.norm(f"{at}.norm", VISION_WIDTH)
    state.linear(f"{at}.head", 24, VISION_WIDTH)
    state.norm("ln_vision", VISION_WIDTH)


def projector_state(state: Drawn, llm_width: int) -> None:
    state["query_tokens"] = torch.randn(1, TOKENS, WIDTH)
    embeddings = "ParGo.bert.embeddings"
    state[f"{embeddings}.position_ids"] = torch.arange(POSITIONS)[None]
    state[f"{embeddings}.position_embeddings.weight"] = torch.randn(POSITIONS, WIDTH)
    state.norm(f"{embeddings}.LayerNorm", WIDTH)
    for n in range(LAYERS):
        at = f"ParGo.bert.encoder.layer.{n}"
        for attention, source in (("attention", WIDTH), ("crossattention", VISION_WIDTH)):
            state.linear(f"{at}.{attention}.self.query", WIDTH, WIDTH)
            state.linear(f"{at}.{attention}.self.key", WIDTH, source)
            state.linear(f"{at}.{attention}.self.value", WIDTH, source)
            state.linear(f"{at}.{attention}.output.dense", WIDTH, WIDTH)
            state.norm(f"{at}.{attention}.output.LayerNorm", WIDTH)
        state.linear(f"{at}.intermediate_query.dense", INNER, WIDTH)
        state.linear(f"{at}.output_query.dense", WIDTH, INNER)
        state.norm(f"{at}.output_query.LayerNorm", WIDTH)
    state.linear("llm_proj", llm_width, WIDTH)


def text_branch_state(state: Drawn) -> None:
    """What the release sets to None before it loads weights; a checkpoint from before that would
    hold it.
    """
    state["ParGo.bert.embeddings.word_embeddings.weight"] = torch.randn(50, WIDTH)
    for n in range(LAYERS):
        at = f"ParGo.bert.encoder.layer.{n}"
        state.linear(f"{at}.intermediate.dense", INNER, WIDTH)
        state.linear(f"{at}.output.dense", WIDTH, INNER)
        state.norm(f"{at}.output.LayerNorm", WIDTH)
    state.linear("ParGo.cls.predictions.transform.dense", WIDTH, WIDTH)
    state.norm("ParGo.cls.predictions.transform.LayerNorm", WIDTH)
    state["ParGo.cls.predictions.bias"] = torch.randn(50)
    state.linear("ParGo.cls.predictions.decoder", 50, WIDTH)


def llm_config(vocabulary: int, max_positions: int = 512) -> dict[str, Any]:
    """InternLM2's config.json; internlm2-7b has the same keys."""
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
        "attn_implementation": "eager", "bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 48,
        "max_position_embeddings": max_positions, "model_type": "internlm2", "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 2, "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 10000, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": vocabulary,
    }  # fmt: skip


def llm_state(config: dict[str, Any]) -> Drawn:
    """InternLM2's weights by their own names."""
    width, inner, heads = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_attention_heads"],
    )
    rows = (heads + 2 * config["num_key_value_heads"]) * (width // heads)
    state = Drawn()
    state["model.tok_embeddings.weight"] = torch.randn(config["vocab_size"], width)
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        state.linear(f"{at}.attention.wqkv", rows, width, bias=False)
        state.linear(f"{at}.attention.wo", width, width, bias=False)
        state.linear(f"{at}.feed_forward.w1", inner, width, bias=False)
        state.linear(f"{at}.feed_forward.w3", inner, width, bias=False)
        state.linear(f"{at}.feed_forward.w2", width, inner, bias=False)
        state.norm(f"{at}.attention_norm", width, bias=False)
        state.norm(f"{at}.ffn_norm", width, bias=False)
    state.norm("model.norm", width, bias=False)
    state.linear("output", config["vocab_size"], width, bias=False)
    return state


def lora_state(state: Drawn, config: dict[str, Any]) -> None:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    rows = (heads + 2 * config["num_key_value_heads"]) * (width // heads)
    for n in range(config["num_hidden_layers"]):
        at = f"llm_model.base_model.model.model.layers.{n}.attention.wqkv"
        state[f"{at}.lora_A.default.weight"] = torch.randn(RANK, width) / width**0.5
        state[f"{at}.lora_B.default.weight"] = torch.randn(rows, RANK) / 4


def release_state(config: dict[str, Any], llm: dict[str, torch.Tensor], lora: bool = True) -> Drawn:
    """The whole module's state dict, as MiniGPT_v2.state_dict() names it; the LLM inside peft's
    wrapper with LoRA.
    """
    state = Drawn()
    vision_state(state)
    projector_state(state, config["hidden_size"])
    wrapper, inner = (
        ("llm_model.base_model.model.", ".wqkv.base_layer.") if lora else ("llm_model.", ".wqkv.")
    )
    state |= {wrapper + name.replace(".wqkv.", inner): tensor for name, tensor in llm.items()}
    if lora:
        lora_state(state, config)
    return state


SYMBOLS = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABCEDGHIMNORSTUWY0123456789.,:;?!'<>/()\n"]
MERGES = [
    "he", "\u2581t", "\u2581the", "in", "an", "er", "on", "\u2581a", "en", "re", "Im", "Img", "\u2581c", "co", "ol",
    "col", "\u2581col", "or", "\u2581\u2581", "ur", "our", "is", "\u2581is", "at", "ha", "hat", "<s", "</",
]  # fmt: skip


def tokenizer_model(dummy_prefix: bool = True, remove_extra_spaces: bool = False) -> bytes:
    """SentencePiece's file for a BPE with byte fallback: `SYMBOLS` and `MERGES` after the special
    pieces and bytes.
    """
    control = [_piece("<unk>", 0, 2), _piece("<s>", 0, 3), _piece("</s>", 0, 3)]
    all_bytes = [_piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256)]
    texts = [*MERGES, *SYMBOLS]
    learned = [_piece(text, -number, 1) for number, text in enumerate(texts)]
    unused = [_piece(f"[UNUSED_TOKEN_{number}]", 0, 4) for number in (1, 2)]
    pieces = b"".join(_bytes(1, piece) for piece in (*control, *all_bytes, *learned, *unused))
    trainer = _number(3, 2) + _number(35, 1) + _number(40, 0) + _number(41, 1) + _number(42, 2)
    spec = (
        _bytes(1, b"identity")
        + _number(3, dummy_prefix)
        + _number(4, remove_extra_spaces)
        + _number(5, 1)
    )
    return pieces + _bytes(2, trainer) + _bytes(3, spec)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _bytes(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


VOCABULARY = 3 + 256 + len(MERGES) + len(SYMBOLS) + 2


def write_llm_folder(
    folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor] | None
) -> Path:
    """InternLM2's folder; `state` None leaves out the weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    settings = {
        "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
    }
    auto_map = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "auto_map": auto_map}))
    if state is not None:
        save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
