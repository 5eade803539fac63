"""Read lists of data sets from files of other projects: InternVL's meta JSON and LLaVA-NeXT's YAML."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from pargo_ds.data.sources.json_files import TwoValues, check_each_once, load_json
from pargo_ds.data.sources.keys import given, is_empty
from pargo_ds.data.sources.rejects import Reject, shortened
from pargo_ds.errors import ConfigError, SourceError
from pargo_ds.settings_file import read_yaml

NOTES = (
    "length",
    "name",
    "description",
    "comment",
    "data_augment",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "max_num",
)
"""Keys of a data set that are ignored: notes, and what InternVL does to images while it trains."""
SHARE = re.compile(r"random:(\d+(?:\.\d+)?)%")


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """One data set of a recipe. `name` is the name of its folder, and `repeat` says how often its
    samples occur in an epoch.
    """

    name: str
    file: str
    image_folder: str | None
    repeat: float


def read_recipe(path: str, image_folder: str | None) -> list[Ingredient]:
    """Return the data sets that a recipe lists, in its order.

    InternVL: {name: {"root", "annotation", "repeat_time"}}; a relative root is below
    `image_folder`, if that is given. LLaVA-NeXT: {"datasets": [{"json_path",
    "sampling_strategy"}]}; all images are below `image_folder`.

    Raises SourceError for other contents, two data sets of the same name, and ways of sampling that
    a run file cannot express.
    """
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        document = _yaml(path)
    else:
        document = load_json(path)
    if isinstance(document, TwoValues):
        raise SourceError(
            f"{path} lists {document.twice} twice; give each data set a name of its own"
        )
    try:
        check_each_once(document)
    except Reject as reject:
        raise SourceError(f"{path}: {reject.reason}") from reject
    if isinstance(document, dict) and isinstance(document.get("datasets"), list):
        found = []
        for number, entry in enumerate(document["datasets"], 1):
            found.append(_llava_next(path, number, entry, image_folder))
    elif (
        isinstance(document, dict)
        and document
        and all(isinstance(entry, dict) for entry in document.values())
    ):
        found = [_internvl(path, name, entry, image_folder) for name, entry in document.items()]
    else:
        raise SourceError(
            f"{path} is no list of data sets: expected InternVL's {{name: {{root, annotation}}}} or LLaVA-NeXT's "
            "datasets: [{json_path, sampling_strategy}]"
        )
    names = [ingredient.name for ingredient in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(
            f"{path}: two data sets are named {twice}, so one folder would hold both; rename one"
        )
    return found


def _yaml(path: str) -> Any:
    try:
        return read_yaml(path).values
    except ConfigError as error:
        raise SourceError(str(error)) from error


def _internvl(path: str, name: Any, entry: dict[str, Any], image_folder: str | None) -> Ingredient:
    where = f"{path}: {shortened(name)}"
    _check_keys(where, entry, ("root", "annotation", "repeat_time"))
    root = entry.get("root")
    if root is not None and not isinstance(root, str):
        raise SourceError(f"{where} has the root {shortened(root)}; expected a folder")
    folder = image_folder
    if root:
        folder = str(Path(image_folder or "", root))
    repeat = entry.get("repeat_time", 1)
    if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not repeat > 0:
        raise SourceError(
            f"{where} has repeat_time {shortened(repeat)}; expected a number above 0, or leave it out"
        )
    return Ingredient(
        _folder_name(str(name)),
        _file(where, entry.get("annotation"), "annotation"),
        folder,
        float(repeat),
    )


def _llava_next(path: str, number: int, entry: Any, image_folder: str | None) -> Ingredient:
    where = f"{path}: data set {number}"
    if not isinstance(entry, dict):
        raise SourceError(
            f"{where} is {shortened(entry)}; expected {{json_path, sampling_strategy}}"
        )
    _check_keys(where, entry, ("json_path", "sampling_strategy", "image_folder", "images_folder"))
    try:
        own = given(entry, ("image_folder", "images_folder"), "folders")
    except Reject as reject:
        raise SourceError(f"{where}: {reject.reason}") from reject
    file = _file(where, entry.get("json_path"), "json_path")
    return Ingredient(
        _folder_name(Path(file).stem),
        file,
        own or image_folder,
        _share(where, entry.get("sampling_strategy")),
    )


def _check_keys(where: str, entry: dict[str, Any], known: tuple[str, ...]) -> None:
    """Raise SourceError for a key that is not read and has a value, because a mistyped key would
    change the mixture.
    """
    unread = []
    for key, value in entry.items():
        if key not in (*known, *NOTES) and not is_empty(value):
            unread.append(key)
    if unread:
        shown = ", ".join(map(shortened, unread))
        raise SourceError(
            f"{where} has the keys {shown}, which are not read; read are {', '.join(known)}: remove them"
        )


def _share(where: str, strategy: Any) -> float:
    if strategy in (None, "all"):
        return 1.0
    found = SHARE.fullmatch(str(strategy))
    if found and 0 < float(found[1]) <= 100:
        return float(found[1]) / 100
    raise SourceError(
        f"{where} has sampling_strategy {shortened(strategy)}; read are all and random:P%, which become repeat in the "
        "run file. For the first or last N entries write a file that holds only these"
    )


def _file(where: str, name: Any, key: str) -> str:
    if not isinstance(name, str) or not Path(name).is_file():
        raise SourceError(
            f"{where}: its {key} {shortened(name)} is not a file (paths begin in the current folder)"
        )
    return name


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "unnamed"
