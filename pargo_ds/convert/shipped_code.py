"""Write the model's code beside its weights, so that transformers loads them without this package.

The entry `auto_map` in the JSON files tells the Auto classes which class of which file to use; they
follow it only with trust_remote_code=True. If pargo_ds is imported, its own classes are used, and
the code of the folder is never run.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import IMAGE_PROCESSOR_NAME

from pargo_ds import model
from pargo_ds.errors import CheckpointError
from pargo_ds.model import (
    ParGoConfig,
    ParGoForConditionalGeneration,
    ParGoImageProcessor,
    ParGoModel,
    ParGoProcessor,
)

AUTO_MAP: dict[str, dict[str, type]] = {
    "config.json": {
        "AutoConfig": ParGoConfig,
        "AutoModel": ParGoModel,
        "AutoModelForCausalLM": ParGoForConditionalGeneration,
        "AutoModelForImageTextToText": ParGoForConditionalGeneration,
    },
    "processor_config.json": {"AutoProcessor": ParGoProcessor},
    IMAGE_PROCESSOR_NAME: {"AutoImageProcessor": ParGoImageProcessor},
}
"""For each JSON file the Auto classes and our classes, which are those that pargo_ds.model
registers.
"""

ALL_FILES = "# Written by pargo_ds: transformers copies the files that these lines name."


def ship_code(folder: Path) -> None:
    """Copy the code and write `auto_map`. A second call changes nothing.

    Raises CheckpointError when `folder` has no configuration of a model and a processor.
    """
    for name, text in code_texts().items():
        (folder / name).write_text(text, encoding="utf-8")
    for name, classes in AUTO_MAP.items():
        auto_map = {auto: f"{module_of(cls)}.{cls.__name__}" for auto, cls in classes.items()}
        _change(folder / name, auto_map)


def forget_code(folder: Path) -> None:
    """Remove `auto_map` from the JSON files of a folder that has no code."""
    for name in AUTO_MAP:
        if (folder / name).is_file():
            _change(folder / name, None)


def code_files() -> list[Path]:
    """Return the files of model/ except for `__init__`, which registers the classes of an installed
    package.
    """
    home = Path(model.__file__).parent
    return sorted(path for path in home.glob("*.py") if path.name != "__init__.py")


def code_texts() -> dict[str, str]:
    """Return the text of each file in an export by the name of the file.

    transformers 4 copies only the files to its cache that the file of an Auto class imports
    directly, and no import names a projector, which is found by its type. So the files of the Auto
    classes end with imports of all other files, which transformers reads and Python never runs.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in code_files()}
    entries: set[str] = set()
    for classes in AUTO_MAP.values():
        entries.update(f"{module_of(cls)}.py" for cls in classes.values())
    for entry in entries:
        others = [name.removesuffix(".py") for name in texts if name != entry]
        imports = "".join(f"    from .{module} import *\n" for module in others)
        texts[entry] += f"\n{ALL_FILES}\nif False:\n{imports}"
    return texts


def module_of(cls: type) -> str:
    """Return the name of the module of a class without its package."""
    return cls.__module__.rpartition(".")[2]


def _change(path: Path, auto_map: dict[str, str] | None) -> None:
    """Replace or remove `auto_map`, in the layout in which transformers writes these files."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        body.pop("auto_map", None)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if auto_map is not None:
        body["auto_map"] = auto_map
    path.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n", encoding="utf-8")
