"""The authors' released checkpoint (bytedance/ParGo@60b5bd0) as a source of weights for our model.

Its projector is our projector with `norm: post`, `patch_norm: false`, `query_positions`, `norm_eps:
1e-12` and `cascade: release`; its vision tower is timm's EVA-02; its LLM is InternLM2 with LoRA on
the fused projection, and becomes a Llama.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from transformers import GenerationConfig, LlamaConfig

from pargo_ds.convert.release import keys as keys
from pargo_ds.convert.release.llm import LLMFolder, split_wqkv
from pargo_ds.convert.release.lora import PARTS, ReleaseLora, lora_rank
from pargo_ds.convert.release.tensor_files import TensorFiles, files_of
from pargo_ds.convert.release.tokenizer import load_tokenizer
from pargo_ds.convert.weights import Spec, WeightSource, check_names, expected_shapes
from pargo_ds.errors import CheckpointError
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoProcessor,
    ParGoProjectorConfig,
    vision_config_from_timm,
)

HEAD_DIM = 64
"""Width of an attention head in every published BERT."""
BERT_EPS = 1e-12
TOWER_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class ReleaseFacts:
    """Facts about the release that its tensors do not show. The defaults are those of
    configs/MMEBench_interLM2-7B.json.

    Args:
        partial_tokens: number of learned tokens that are partial tokens.
        heads: number of attention heads of the projector (default: its width / 64).
        lora_alpha: the product of LoRA's matrices is multiplied by lora_alpha / rank.
        vision: name of the vision tower in timm.
        vision_weights: file or folder with the weights of the vision tower, for a checkpoint that
            has only trained weights.
    """

    partial_tokens: int = 288
    heads: int | None = None
    lora_alpha: int = 512
    vision: str = "eva02_large_patch14_clip_336"
    vision_weights: Path | None = None


class ReleaseWeights(WeightSource):
    """A released checkpoint and the LLM's folder under our names, in `dtype`.

    Tensors of the LLM come from the checkpoint if it has them, otherwise from the folder, as the
    release loads them. With `merge_lora`, LoRA is added to the LLM's weights in fp32; otherwise it
    is kept in `lora`, which is None for a checkpoint without LoRA.

    Raises:
        CheckpointError: a file cannot be read; tensors are missing, unexpected or have another
            shape (listed together, by their names in the release); or the LLM is no InternLM2.
    """

    def __init__(
        self,
        path: Path,
        llm: LLMFolder,
        facts: ReleaseFacts,
        *,
        dtype: torch.dtype,
        merge_lora: bool,
    ) -> None:
        if facts.lora_alpha < 1:
            raise CheckpointError(
                f"--lora-alpha {facts.lora_alpha}: expected 1 or more; LoRA would change nothing"
            )
        self.where, self.llm, self.dtype, self.merge_lora, self.facts = (
            path,
            llm,
            dtype,
            merge_lora,
            facts,
        )
        self.files = TensorFiles([path])
        self._keys = keys.canonical_names(self.files.shapes)
        used = {name: key for name, key in self._keys.items() if not keys.is_unused(name)}
        found = {name: self.files.shapes[key] for name, key in used.items()}
        self.config, self._processor = describe(path, found, llm, facts, dtype)
        expected = expected_shapes(self.config)
        self._sources = {name: keys.release_name(name) for name in expected}
        wanted = self._wanted(expected)
        self._base = self._base_of_the_rest(found, wanted)
        self._tower, self._tower_keys = self._tower_of_its_own(found)
        text, rank = cast("LlamaConfig", self.config.text_config), lora_rank(found)
        self.lora: ReleaseLora | None = None
        if rank is not None:
            self.lora = ReleaseLora(path, text, rank, facts.lora_alpha, dtype, self._release)
            wanted |= self.lora.wanted
        check_names(f"{path} with {llm.source}", self._cut_positions(found), wanted)
        self.specs = {name: Spec(shape, dtype) for name, shape in expected.items()}
        self._fused: tuple[str, tuple[torch.Tensor, ...]] | None = None

    def _wanted(self, expected: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that our model needs, by its canonical release name."""
        wanted: dict[str, tuple[int, ...]] = {}
        for name, shape in expected.items():
            source = self._sources[name]
            if source == keys.QUERIES:
                wanted[source] = (1, *shape)
            elif source in wanted:  # another part of the same fused projection
                wanted[source] = (wanted[source][0] + shape[0], *shape[1:])
            else:
                wanted[source] = shape
        return wanted

    def _base_of_the_rest(
        self, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
    ) -> TensorFiles | None:
        """Return the files of the LLM if the checkpoint lacks some of its weights, and add the
        shapes of their tensors to `found`.
        """
        if all(name in found for name in wanted if name.startswith(keys.LLM)):
            return None
        base = self.llm.weights()
        for name, shape in base.shapes.items():
            if not keys.is_unused(keys.LLM + name):
                found.setdefault(keys.LLM + name, shape)
        return base

    def _tower_of_its_own(
        self, found: dict[str, tuple[int, ...]]
    ) -> tuple[TensorFiles | None, dict[str, str]]:
        """Return the files of the vision tower if the checkpoint does not have it, and add the
        shapes of their tensors to `found`.
        """
        towers = {}
        for name, source in self._sources.items():
            if source.startswith(keys.VISION):
                towers[source] = name.removeprefix("vision.backbone.")
        if any(source in found for source in towers):
            return None, {}
        path = self.facts.vision_weights
        if path is None:
            raise CheckpointError(
                f"{self.where} holds no vision tower ({keys.VISION}...): name the file or folder of "
                f"{self.facts.vision} with --vision-weights"
            )
        paths = [path] if path.is_file() else files_of(path, TOWER_FILES)
        files = TensorFiles(paths)
        places = keys.tower_names(files.shapes, towers)
        found.update({source: files.shapes[key] for source, key in places.items()})
        return files, places

    def _cut_positions(self, found: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Cut BERT's table of positions to the rows that the projector uses."""
        shape, used = found.get(keys.POSITIONS), self.config.visual_tokens
        if not shape or shape[0] <= used:
            return found
        return {**found, keys.POSITIONS: (used, *shape[1:])}

    def _release(self, name: str) -> torch.Tensor:
        if name in self._keys:
            return self.files.read(self._keys[name])
        if self._tower is not None and name in self._tower_keys:
            return self._tower.read(self._tower_keys[name])
        assert self._base is not None  # check_names has made sure that each tensor has a source
        return self._base.read(name.removeprefix(keys.LLM))

    def _parts(self, source: str) -> tuple[torch.Tensor, ...]:
        """Return query, key and value of a fused projection. The last projection is kept, because
        the three parts are read one after another.
        """
        if self._fused is None or self._fused[0] != source:
            self._fused = None
            whole = self._release(source)
            if self.merge_lora and self.lora:
                whole = whole.float() + self.lora.delta(source)
            self._fused = source, split_wqkv(whole, cast("LlamaConfig", self.config.text_config))
        return self._fused[1]

    def read(self, name: str) -> torch.Tensor:
        source = self._sources[name]
        if keys.FUSED.match(source):
            values = self._parts(source)[PARTS.index(name.split(".")[-2])]
        elif source == keys.QUERIES:
            values = self._release(source)[0]
        elif source == keys.POSITIONS:
            values = self._release(source)[: self.config.visual_tokens]
        else:
            values = self._release(source)
        cast = values.to(self.dtype)
        if not torch.isfinite(cast).all():
            raise CheckpointError(
                f"{self.where}: {source} has values that {self.dtype} cannot hold; try another --dtype"
            )
        return cast

    def processor(self) -> ParGoProcessor:
        return self._processor

    def assumed(self) -> list[str]:
        """Return the values that the tensors do not show and that are taken from the release's code
        or from the options. With a wrong value the model loads, but gives worse answers.
        """
        projector, vision = self.config.projector_config, self.config.vision_config
        said = [
            f"{projector.partial_tokens} are partial of {projector.tokens} learned tokens (--partial-tokens)",
            f"the projector has {projector.heads} attention heads, of width {projector.width // projector.heads} "
            "(--heads; default: of width 64)",
            f"the vision tower is {vision.name} for images of {vision.image_size} pixels (--vision), its pixels "
            f"normalised by mean {rounded(vision.image_mean)} and deviation {rounded(vision.image_std)}",
            f"LayerNorms have epsilon {projector.norm_eps:g}, and the mask is the release's (cascade: release)",
            f"weights are kept in {str(self.dtype).removeprefix('torch.')} (--dtype); the prompt is the release's",
        ]
        if self.lora:
            said.append(
                f"LoRA has alpha {self.lora.alpha}, a strength of {self.lora.alpha / self.lora.rank:g} (--lora-alpha)"
            )
        if self.facts.vision_weights is not None and self._tower_keys:
            said.append(
                f"the checkpoint has no vision tower; its weights come from {self.facts.vision_weights.name}"
            )
        return said

    def write_description(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self._processor.tokenizer
        self.config.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=self._processor.stop_token_ids,
            pad_token_id=tokenizer.pad_token_id,
        ).save_pretrained(folder)
        self._processor.save_pretrained(folder)


def rounded(values: list[float]) -> str:
    """Return numbers with three digits, for messages."""
    return ", ".join(f"{value:.3g}" for value in values)


def describe(
    path: Path,
    found: dict[str, tuple[int, ...]],
    llm: LLMFolder,
    facts: ReleaseFacts,
    dtype: torch.dtype,
) -> tuple[ParGoConfig, ParGoProcessor]:
    """Return configuration and processor of the model, from the shapes of the checkpoint, the
    folder of the LLM and the facts.

    Raises CheckpointError when these do not fit each other.
    """
    projector, text = projector_config(path, found, facts), llm.config()
    vision = vision_config_from_timm(facts.vision, feature_norm=True)
    processor = ParGoProcessor(
        load_tokenizer(llm.folder),
        image_size=vision.image_size,
        visual_tokens=projector.tokens,
        prompt="paper",
    )
    config = ParGoConfig(
        vision_config=vision,
        text_config=text,
        projector_config=projector,
        image_token_id=processor.image_token_id,
        architectures=[ParGoForConditionalGeneration.__name__],
        dtype=dtype,
    )
    return config, processor


def projector_config(
    path: Path, found: dict[str, tuple[int, ...]], facts: ReleaseFacts
) -> ParGoProjectorConfig:
    """Return the projector's configuration, from the shapes of its tensors.

    Raises CheckpointError when the checkpoint has no projector, or the facts do not fit it.
    """
    inner = f"{keys.BERT}encoder.layer.0.intermediate_query.dense.weight"
    queries, ffn = found.get(keys.QUERIES), found.get(inner)
    if queries is None or len(queries) != 3 or ffn is None or len(ffn) != 2:
        raise CheckpointError(
            f"{path} holds no projector of the release: {keys.QUERIES} has shape {queries}, expected (1, tokens, "
            f"width), and {inner} has shape {ffn}, expected (inner width, width)"
        )
    layers = {int(match[1]) for name in found if (match := keys.BERT_LAYER.match(name))}
    tokens, width = queries[1:]
    heads = facts.heads
    if heads is None:
        heads = max(1, width // HEAD_DIM)
    if facts.partial_tokens > tokens:
        raise CheckpointError(
            f"{path} has {tokens} learned tokens, fewer than {facts.partial_tokens} partial ones"
        )
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"{path}: {heads} heads do not divide the projector's width {width}; give --heads"
        )
    return ParGoProjectorConfig(
        partial_tokens=facts.partial_tokens,
        global_tokens=tokens - facts.partial_tokens,
        layers=max(layers) + 1,
        width=width,
        heads=heads,
        ffn_width=ffn[0],
        cascade="release",
        norm="post",
        patch_norm=False,
        norm_eps=BERT_EPS,
        query_positions=True,
    )
