"""Compare two models in any of the formats that can be converted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pargo_ds.config import RunConfig
from pargo_ds.convert.hf_folder import HFFolder
from pargo_ds.convert.megatron.megatron_to_hf import TRACKER, MegatronWeights
from pargo_ds.convert.megatron.torch_dist_metadata import METADATA
from pargo_ds.convert.weights import WeightSource, progress, total_bytes
from pargo_ds.convert.zero.checkpoint_files import is_checkpoint
from pargo_ds.convert.zero.checkpoint_weights import CheckpointWeights
from pargo_ds.errors import CheckpointError
from pargo_ds.files.sha256sums import HASHES
from pargo_ds.model import ParGoForConditionalGeneration


@dataclass
class Comparison:
    """The result of `compare`. `differing` maps names to the largest absolute difference of their
    elements.
    """

    tensors: int = 0
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    differing: dict[str, float] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    """The types of tensors whose types differ, such as "bfloat16 and float32". Their values are
    compared in fp64.
    """

    def fits(self, tolerance: float = 0.0) -> bool:
        """Whether names and shapes are equal, and values up to `tolerance`. With tolerance 0 the
        types and all bits must be equal.
        """
        if self.only_first or self.only_second or self.misshapen:
            return False
        if tolerance > 0:
            return self.largest <= tolerance
        return not self.differing and not self.dtypes

    @property
    def largest(self) -> float:
        """The largest absolute difference of two elements."""
        return max(self.differing.values(), default=0.0)

    def __str__(self) -> str:
        kinds = {
            "only in the first": self.only_first,
            "only in the second": self.only_second,
            "of different shapes": self.misshapen,
            "of different types": [f"{name} ({types})" for name, types in self.dtypes.items()],
        }
        lines = []
        for kind, names in kinds.items():
            if names:
                more = " ..." if len(names) > 8 else ""
                lines.append(f"{len(names)} tensors {kind}: {', '.join(names[:8])}{more}")
        if self.differing:
            worst = max(self.differing, key=lambda name: self.differing[name])
            lines.append(
                f"{len(self.differing)} of {self.tensors} common tensors differ, most {worst}: {self.largest:.3e}"
            )
        else:
            lines.append(f"{self.tensors} common tensors, all equal")
        return "\n".join(lines)


def open_weights(
    path: Path,
    base: Path | None = None,
    run: RunConfig | None = None,
    release: Callable[[Path], WeightSource] | None = None,
) -> WeightSource:
    """Open the weights at `path` in any format. LoRA of training checkpoints is merged.

    Args:
        base: exported folder with the parts that a checkpoint of Megatron lacks.
        run: run file; only for checkpoints of DeepSpeed alone.
        release: opens the file of the authors' release.

    Raises CheckpointError when `path` has none of the formats, or when it needs one of the
    arguments.
    """
    if path.is_file():
        if release is None:
            raise CheckpointError(
                f"{path} is a file, so it must be the authors' release; name its LLM with --llm"
            )
        return release(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    if (path / METADATA).is_file() or (path / TRACKER).is_file():
        return MegatronWeights(path, base)
    if (path / "config.json").is_file():
        return HFFolder(path)
    if is_checkpoint(path):
        return CheckpointWeights(path, run)
    raise CheckpointError(
        f"{path} is neither a Hugging Face folder (config.json), nor a torch_dist checkpoint ({METADATA}), nor a "
        "training checkpoint (manifest.json), DeepSpeed's own (latest), or a run's folder"
    )


def unproven(source: WeightSource) -> str | None:
    """Return a warning for an exported folder whose files could not be compared with hashes."""
    if not isinstance(source, HFFolder) or source.checked:
        return None
    return f"{source.where} has no {HASHES}: whether its files are as they were exported could not be checked"


def compare(first: WeightSource, second: WeightSource) -> Comparison:
    """Compare all tensors, with one pair in memory at a time."""
    common = [name for name in first.specs if name in second.specs]
    result = Comparison(
        len(common),
        sorted(first.specs.keys() - second.specs.keys()),
        sorted(second.specs.keys() - first.specs.keys()),
    )
    with progress("comparing", total_bytes(first.specs[name] for name in common)) as advance:
        for name in common:
            advance(first.specs[name].bytes)
            one, other = first.specs[name], second.specs[name]
            if one.shape != other.shape:
                result.misshapen.append(f"{name} ({list(one.shape)} and {list(other.shape)})")
                continue
            if one.dtype != other.dtype:
                result.dtypes[name] = f"{one.dtype} and {other.dtype}".replace("torch.", "")
            difference = largest_difference(first.read(name), second.read(name))
            if difference is not None:
                result.differing[name] = difference
    return result


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return the largest absolute difference of two elements; None if all bits are equal, and
    infinity if one of two elements is NaN.
    """
    if one.dtype == other.dtype and same_bits(one, other):
        return None
    a, b = one.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    if one.dtype != other.dtype and bool(same.all()):
        return None
    gap = torch.where(same, 0.0, (a - b).abs())
    return float(torch.nan_to_num(gap, nan=float("inf"), posinf=float("inf")).max())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one type have the same bits, NaN and signs of zeros included."""
    return torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8),
        other.contiguous().reshape(-1).view(torch.uint8),
    )


def logits_of(
    source: WeightSource, image: Path, question: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of the prompt and the logits `(1, tokens, vocabulary)` in fp32 for one
    image and one question.
    """
    from pargo_ds.data.images import read_image
    from pargo_ds.model import IMAGE_PLACEHOLDER

    try:
        opened = read_image(image.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{image} cannot be read as an image: {error}") from error
    turns = [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}\n{question}"}]
    asked = source.processor().apply_chat_template(
        turns, images=opened, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )
    model = load_model(source)
    with torch.no_grad():
        logits = model(**asked).logits
    return asked["input_ids"], logits


def load_model(source: WeightSource) -> ParGoForConditionalGeneration:
    """Return the model in fp32 with the weights of `source`."""
    model = ParGoForConditionalGeneration(source.config).float().eval()
    state = model.state_dict()
    with torch.no_grad():
        for name in source.specs:
            state[name].copy_(source.read(name))
    return model


def compare_logits(first: WeightSource, second: WeightSource, image: Path, question: str) -> float:
    """Return the largest absolute difference of the logits.

    Raises CheckpointError when the prompts' tokens differ.
    """
    ids, logits = logits_of(first, image, question)
    other_ids, other_logits = logits_of(second, image, question)
    if not torch.equal(ids, other_ids):
        raise CheckpointError(
            f"the processors of {first.where} and {second.where} turn the question into different tokens"
        )
    # The image token's column is -inf in both.
    kept = torch.isfinite(logits) | torch.isfinite(other_logits)
    return float((logits - other_logits)[kept].abs().max())
