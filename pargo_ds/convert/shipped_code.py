"""The model's code beside its weights, so that transformers loads them without this package.

`auto_map` in the JSON files tells the Auto classes which class of which file to take; they do so only when asked with
trust_remote_code=True. Where pargo_ds is imported its own classes are taken, and a folder's code is never run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import IMAGE_PROCESSOR_NAME

from pargo_ds import model
from pargo_ds.checkpoint.manifest import CheckpointError
from pargo_ds.model import ParGoConfig, ParGoForConditionalGeneration, ParGoImageProcessor, ParGoProcessor

AUTO_MAP: dict[str, dict[str, type]] = {
    "config.json": {
        "AutoConfig": ParGoConfig,
        "AutoModelForCausalLM": ParGoForConditionalGeneration,
        "AutoModelForImageTextToText": ParGoForConditionalGeneration,
    },
    "processor_config.json": {"AutoProcessor": ParGoProcessor},
    IMAGE_PROCESSOR_NAME: {"AutoImageProcessor": ParGoImageProcessor},
}
"""Description file -> Auto class -> class; the same ones that pargo_ds.model registers."""


def ship_code(folder: Path) -> None:
    """Copy the code and write `auto_map`; doing it again changes nothing.

    Raises CheckpointError when `folder` has no configuration of a model and a processor.
    """
    for path in code_files():
        shutil.copyfile(path, folder / path.name)
    for name, classes in AUTO_MAP.items():
        if name == IMAGE_PROCESSOR_NAME and not (folder / name).exists():
            continue  # an export from before there was one: processor_config.json says it all
        auto_map = {auto: f"{module_of(cls)}.{cls.__name__}" for auto, cls in classes.items()}
        _change(folder / name, auto_map)


def forget_code(folder: Path) -> None:
    """Take `auto_map` out of a description that has no code beside it."""
    for name in AUTO_MAP:
        if (folder / name).is_file():
            _change(folder / name, None)


def code_files() -> list[Path]:
    """What transformers' loader finds when it follows the relative imports of the classes' files."""
    home = Path(model.__file__).parent
    entries = {home / f"{module_of(cls)}.py" for classes in AUTO_MAP.values() for cls in classes.values()}
    needed = {Path(file) for entry in entries for file in get_relative_import_files(entry)}
    return sorted(entries | needed)


def module_of(cls: type) -> str:
    """Name of the file of a class, without its package."""
    return cls.__module__.rpartition(".")[2]


def _change(path: Path, auto_map: dict[str, str] | None) -> None:
    """Replace or drop `auto_map`, in transformers' own layout of these files."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        body.pop("auto_map", None)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if auto_map is not None:
        body["auto_map"] = auto_map
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
