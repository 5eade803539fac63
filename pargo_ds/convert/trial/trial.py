"""Try export, reload and generation on a tiny copy of the run's model, before the run trains.

The copy has the processor, generation settings, projector and LoRA of the run, and layers of the
same model families. zero-to-hf exports it, and the Auto classes load it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from pargo_ds import assembly, distributed
from pargo_ds.config import RunConfig
from pargo_ds.convert.trial.trained import trained_model, write_checkpoint
from pargo_ds.convert.trial.twin import tiny_run
from pargo_ds.convert.zero import zero_to_hf
from pargo_ds.errors import ConfigError
from pargo_ds.model import IMAGE_PLACEHOLDER, ParGoForConditionalGeneration, ParGoProcessor

TOLERANCE = 1e-3
"""Largest accepted difference of the logits, relative to the largest logit.

Measured: 0, and 1.3e-5 when LoRA is merged; the only fault that was seen had 1.2.
"""
NEW_TOKENS = 3


def try_export(run: RunConfig, processor: ParGoProcessor) -> str:
    """Try the export of this run, which takes seconds and no GPU. Return a sentence that says what
    was tried.

    Raises ConfigError when the export would fail or would give another model than the trained one.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pargo_trial_") as place, _aside():
        folder = Path(place)
        try:
            small = tiny_run(run, processor, folder)
        except Exception as error:  # a family may refuse small sizes; that is no fault of the run
            return f"export was not tried: there is no tiny copy of this model ({_reason(error)})"
        with _step("building it"):
            processor = assembly.build_processor(small)
            model = trained_model(small, processor)
            checkpoint = write_checkpoint(small, model, folder / "step_00000001")
            asked = question(processor)
        with _step("exporting it"):
            zero_to_hf.convert(checkpoint, folder / "export")
        with _step("using its export"):
            check_processor(folder / "export", asked)
            use(folder / "export", model, asked)
        ways = ""
        if run.train.llm.mode == "lora":
            ways = "with LoRA apart and merged, "
            with _step("merging its LoRA"):
                zero_to_hf.convert(
                    checkpoint, folder / "merged", merge_lora=True, dtype=torch.float32
                )
                apart = reloaded(folder / "export", torch.float32)
                compare_logits(reloaded(folder / "merged", torch.float32), apart, asked)
    return f"export tried in {time.perf_counter() - started:.1f} s: a tiny model of this kind {ways}reloaded and asked"


def export_says(run: RunConfig) -> str:
    """Return the sentence of try_export for a dry run, or the reason why export was not tried. It
    uses no network. Raises as try_export does.
    """
    missing = missing_file(run)
    if missing is not None:
        return f"export was not tried: {missing} is not on this machine; the run itself tries it before it trains"
    processor = assembly.build_processor(run)
    assembly.check_processor(run, processor)
    return try_export(run, processor)


def missing_file(run: RunConfig) -> str | None:
    """Return the name of a file that the trial needs and that is neither in a folder nor in the
    hub's cache; None if no file is missing.
    """
    if run.start_from is not None:
        path = Path(run.start_from) / "config.json"
        if path.is_file():
            return None
        return str(path)
    wanted = [(run.llm.name, run.llm.revision, "tokenizer_config.json")]
    if run.llm.weights != "random":
        wanted.append((run.llm.name, run.llm.revision, "config.json"))
    if run.vision.library == "transformers" and run.vision.weights != "random":
        wanted.append((run.vision.name, run.vision.revision, "config.json"))
    for name, revision, file in wanted:
        if not is_here(name, revision, file):
            return f"{file} of {name}"
    return None


def is_here(name: str, revision: str | None, file: str) -> bool:
    """Whether a file of a folder or hub name can be read without network."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except HFValidationError:  # the name is that of a folder which does not exist
        return False


def check_processor(folder: Path, asked: BatchFeature) -> None:
    """Raise ValueError unless the exported processor gives the same ids and pixels for the
    question.
    """
    found = question(AutoProcessor.from_pretrained(folder, trust_remote_code=False))
    if any(not torch.equal(found[name], asked[name]) for name in asked):
        raise ValueError("the saved processor gives other ids or pixels than the run's")


def use(folder: Path, trained: nn.Module, asked: BatchFeature) -> None:
    """Load an exported folder as its users do, and generate an answer.

    Raises ValueError unless it is the model that trained.
    """
    model = reloaded(folder, "auto")
    compare_values(model, trained)
    # In fp32, because a CPU may lack operations in the run's precision.
    compare_logits(model.float(), trained.float(), asked)
    assert model.generation_config is not None
    # Some caches need a GPU, which this machine may not have.
    model.generation_config.cache_implementation = None
    model.generate(**asked, max_new_tokens=NEW_TOKENS)


def reloaded(folder: Path, dtype: torch.dtype | str) -> ParGoForConditionalGeneration:
    """Return an exported model in evaluation mode, with the adapter beside it, if there is one.

    Raises ValueError when names of weights are missing or unexpected.
    """
    loaded = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    # The types of transformers do not say that this is a pair.
    model, info = cast("tuple[ParGoForConditionalGeneration, dict[str, Any]]", loaded)
    faults = {}
    for kind, keys in info.items():
        if keys:
            faults[kind] = sorted(map(str, keys))[:3]
    if faults:
        raise ValueError(f"its weights do not fit: {faults}")
    if (folder / zero_to_hf.ADAPTER).is_dir():
        from peft import PeftModel

        # This adds LoRA to model.llm in place.
        PeftModel.from_pretrained(model.llm, folder / zero_to_hf.ADAPTER)
    return model.eval()


def compare_values(model: nn.Module, trained: nn.Module) -> None:
    """Raise ValueError unless all parameters and buffers are equal, bit for bit."""
    found, expected = tensors_of(model), tensors_of(trained)
    differing = sorted(found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        if one.shape != other.shape or not torch.equal(
            one.to(torch.float64), other.to(torch.float64)
        ):
            differing.append(
                f"{name} ({one.dtype} {list(one.shape)}, {other.dtype} {list(other.shape)} in training)"
            )
    if differing:
        shown = ", ".join(differing[:3])
        raise ValueError(
            f"it differs from the model that trained in {shown} ({len(differing)} in all)"
        )


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by name."""
    named = dict([*model.named_parameters(), *model.named_buffers()])
    return {name: tensor.detach() for name, tensor in named.items() if not tensor.is_complex()}


def compare_logits(model: nn.Module, other: nn.Module, asked: BatchFeature) -> None:
    """Raise ValueError unless both models give the same logits up to rounding at the last tokens,
    which attend to all others.
    """
    with torch.no_grad():
        found = model(**asked, logits_to_keep=NEW_TOKENS).logits
        expected = other(**asked, logits_to_keep=NEW_TOKENS).logits
    if found.shape != expected.shape:
        raise ValueError(
            f"its logits have shape {list(found.shape)} instead of {list(expected.shape)}"
        )
    known = torch.isfinite(expected)  # the image token's column is -inf
    scale = float(expected[known].abs().max())
    difference = float((found[known] - expected[known]).abs().max())
    if not difference <= TOLERANCE * scale:
        raise ValueError(
            f"its logits differ by {difference:.2g} from those of the model that trained, which go up to {scale:.2g}"
        )


def question(processor: ParGoProcessor) -> BatchFeature:
    """Return the inputs of a prompt with an image and words in several scripts."""
    turns = [
        {
            "role": "user",
            "content": f"{IMAGE_PLACEHOLDER}What is this? Что это? 这是什么?\n\t 1,234.5",
        }
    ]
    image = Image.radial_gradient("L").convert("RGB")
    return processor.apply_chat_template(
        turns, images=image, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )


@contextmanager
def _aside() -> Iterator[None]:
    """Within this context nothing waits for other ranks, random numbers are restored afterwards,
    and no bars are shown.
    """
    with (
        distributed.alone(),
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a fault of the machine, such as a full disk
        raise ConfigError(
            f"this run would end with weights that cannot be used; tried on a tiny model of the same kind, {what} "
            f"fails: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
