"""What VLMEvalKit's evaluation says of prediction files: CHECKOUT JOBS -> a line of JSON.

JOBS is a JSON list of [class, data set, prediction file]. The line holds for each of them the rows
of VLMEvalKit's table. The classes are those that its `build_dataset` picks; they
are imported from their own modules, because `vlmeval.dataset` imports every benchmark and what
those need.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pandas

MODULES = {
    "ImageYORNDataset": "image_yorn",
    "ImageMCQDataset": "image_mcq",
    "CountBenchQA": "image_vqa",
}


def stand_in(name: str, **members: Any) -> None:
    """A module that is imported and not needed for scores, where it is not installed."""
    if importlib.util.find_spec(name) is None:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)


def bare_package(name: str, folder: Path) -> None:
    """A package whose modules can be imported without its __init__."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]


def evaluated(class_name: str, data_set: str, file: str) -> Any:
    module = importlib.import_module(f"vlmeval.dataset.{MODULES[class_name]}")
    kind = getattr(module, class_name)
    kind.DATASET_MD5 = {}  # a table of another hash is fetched anew
    found = kind(data_set).evaluate(file, model="exact_matching", nproc=1)
    if isinstance(found, pandas.DataFrame):
        return json.loads(found.to_json(orient="records"))
    return [found]


def main() -> None:
    checkout = Path(sys.argv[1])
    stand_in("sty", fg=None)  # colours
    stand_in("tabulate", tabulate=str)  # tables on the terminal
    stand_in("validators", url=lambda text: False)  # is a file's name an address?
    bare_package("vlmeval", checkout / "vlmeval")
    bare_package("vlmeval.dataset", checkout / "vlmeval/dataset")
    print(json.dumps([evaluated(*job) for job in json.loads(sys.argv[2])]))


if __name__ == "__main__":
    main()
