"""Export, reload, ask: what follows a training, tried before it on a tiny copy of the run's own model.

The copy has the run's processor, generation settings, projector and LoRA, and layers of the same families; it goes
through zero-to-hf itself and comes back through the Auto classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

from pargo_ds import distributed
from pargo_ds.config import ConfigError, RunConfig
from pargo_ds.convert.trial.trained import trained_model, write_checkpoint
from pargo_ds.convert.trial.twin import tiny_run
from pargo_ds.convert.zero import zero_to_hf
from pargo_ds.model import IMAGE_PLACEHOLDER, ParGoProcessor
from pargo_ds.training import assembly

log = logging.getLogger("pargo_ds")
TOLERANCE = 1e-3
"""Of the logits, relative to the largest. Measured: 0, and 1.3e-5 where LoRA is merged; the one fault met was 1.2."""
NEW_TOKENS = 3


def try_export(run: RunConfig, processor: ParGoProcessor) -> str:
    """Try what follows this run's training; returns a sentence that says what was tried. Takes seconds and no GPU.

    Raises ConfigError where it would fail, or would give another model than the one that trained.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="pargo_trial_") as place, _aside():
        folder = Path(place)
        try:
            small = tiny_run(run, processor, folder)
        except Exception as error:  # whatever a family's code says: that is no fault of the run
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
        lora = run.train.llm.mode == "lora"
        if lora:
            with _step("merging its LoRA"):
                zero_to_hf.convert(checkpoint, folder / "merged", merge_lora=True, dtype=torch.float32)
                apart = reloaded(folder / "export", torch.float32)
                compare_logits(reloaded(folder / "merged", torch.float32), apart, asked)
    ways = "with LoRA apart and merged, " if lora else ""
    return f"export tried in {time.perf_counter() - started:.1f} s: a tiny model of this kind {ways}reloaded and asked"


def export_says(run: RunConfig) -> str:
    """For a dry run: what try_export says, or why it was not tried. No network. Raises as try_export does."""
    missing = missing_file(run)
    if missing is not None:
        return f"export was not tried: {missing} is not on this machine; the run itself tries it before it trains"
    processor = assembly.build_processor(run)
    assembly.check_processor(run, processor)
    return try_export(run, processor)


def missing_file(run: RunConfig) -> str | None:
    """A description that a trial needs and that is neither in a folder nor in the hub's cache."""
    if run.start_from is not None:
        return None if (Path(run.start_from) / "config.json").is_file() else f"{run.start_from}/config.json"
    wanted = [(run.llm.name, run.llm.revision, "tokenizer_config.json")]
    if run.llm.weights != "random":
        wanted.append((run.llm.name, run.llm.revision, "config.json"))
    if run.vision.library == "transformers" and run.vision.weights != "random":
        wanted.append((run.vision.name, run.vision.revision, "config.json"))
    return next((f"{file} of {name}" for name, revision, file in wanted if not is_here(name, revision, file)), None)


def is_here(name: str, revision: str | None, file: str) -> bool:
    """Whether a file of a folder or hub name can be read without network."""
    if Path(name).is_dir():
        return (Path(name) / file).is_file()
    try:
        return isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except HFValidationError:  # a folder that is not there
        return False


def check_processor(folder: Path, asked: BatchFeature) -> None:
    """ValueError unless the exported processor makes the same ids and pixels of the question."""
    found = question(AutoProcessor.from_pretrained(folder, trust_remote_code=False))
    if any(not torch.equal(found[name], asked[name]) for name in asked):
        raise ValueError("the saved processor gives other ids or pixels than the run's")


def use(folder: Path, trained: nn.Module, asked: BatchFeature) -> None:
    """Load an exported folder as its users do, and ask it. Raises ValueError unless it is the model that trained."""
    model = reloaded(folder, "auto")
    compare_values(model, trained)
    # Both from the run's precision, in which a CPU need not know all operations.
    compare_logits(model.float(), trained.float(), asked)
    model.generation_config.cache_implementation = None  # some need a GPU, which this machine need not have
    model.generate(**asked, max_new_tokens=NEW_TOKENS)


def reloaded(folder: Path, dtype: torch.dtype | str) -> nn.Module:
    """An exported model in evaluation mode, with the adapter beside it, where there is one. ValueError: keys differ."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
    )
    if faults := {kind: sorted(map(str, keys))[:3] for kind, keys in info.items() if keys}:
        raise ValueError(f"its weights do not fit: {faults}")
    if (folder / zero_to_hf.ADAPTER).is_dir():
        from peft import PeftModel

        PeftModel.from_pretrained(model.llm, folder / zero_to_hf.ADAPTER)  # puts LoRA into model.llm
    return model.eval()


def compare_values(model: nn.Module, trained: nn.Module) -> None:
    """ValueError unless parameters and buffers, saved ones and others, are the same, bit for bit."""
    found, expected = tensors_of(model), tensors_of(trained)
    differing = sorted(found.keys() ^ expected.keys())
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        if one.shape != other.shape or not torch.equal(one.to(torch.float64), other.to(torch.float64)):
            differing.append(f"{name} ({one.dtype} {list(one.shape)}, {other.dtype} {list(other.shape)} in training)")
    if differing:
        shown = ", ".join(differing[:3])
        raise ValueError(f"it differs from the model that trained in {shown} ({len(differing)} in all)")


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers."""
    return {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers()) if not t.is_complex()}


def compare_logits(model: nn.Module, other: nn.Module, asked: BatchFeature) -> None:
    """ValueError unless both give the same logits but for rounding, at the last tokens, which see all others."""
    with torch.no_grad():
        found, expected = (each(**asked, logits_to_keep=NEW_TOKENS).logits for each in (model, other))
    if found.shape != expected.shape:
        raise ValueError(f"its logits have shape {list(found.shape)} instead of {list(expected.shape)}")
    known = torch.isfinite(expected)  # the image token's column is -inf
    scale = float(expected[known].abs().max())
    difference = float((found[known] - expected[known]).abs().max())
    if not difference <= TOLERANCE * scale:
        raise ValueError(
            f"its logits differ by {difference:.2g} from those of the model that trained, which go up to {scale:.2g}"
        )


def question(processor: ParGoProcessor) -> BatchFeature:
    """A prompt with a picture and words of several scripts."""
    turns = [{"role": "user", "content": f"{IMAGE_PLACEHOLDER}What is this? Что это? 这是什么?\n\t 1,234.5"}]
    picture = Image.radial_gradient("L").convert("RGB")
    return processor.apply_chat_template(
        turns, images=picture, add_generation_prompt=True, tokenize=True, return_tensors="pt"
    )


@contextmanager
def _aside() -> Iterator[None]:
    """Leave no traces: other ranks, random numbers, bars on the terminal."""
    with distributed.alone(), torch.random.fork_rng(devices=[]), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault: no space, no permission
        raise ConfigError(
            f"this run would end with weights that cannot be used; tried on a tiny model of the same kind, {what} "
            f"fails: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
