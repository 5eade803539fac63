"""Imports run one way: an `ast` walk over the package and the tools.

tools, train.py -> study, demo, captioning, serving, planning -> inspection, learning, speed
                -> training, evaluation, convert, scenes
                -> assembly, checkpoint
                -> {data | model} -> {config, batch, distributed, files}
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {
    "projector_sections",
    "addresses",
    "config",
    "data_sections",
    "model_sections",
    "train_sections",
    "section",
    "settings_file",
    "batch",
    "distributed",
    "errors",
    "files",
    "resident",
    "slow_bf16",
}
CORE = BASE | {"data", "model"}
MIDDLE = CORE | {"assembly", "checkpoint"}
UPPER = MIDDLE | {"training", "evaluation", "convert", "scenes"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "model": set(),  # exported beside the weights, so nothing of ours but itself
    "data": BASE,
    "scenes": BASE | {"data"},
    "assembly": CORE,  # training and conversion build the same model from a run file
    "checkpoint": CORE,
    **dict.fromkeys(("training", "evaluation", "convert"), MIDDLE),
    **dict.fromkeys(("inspection", "learning", "speed"), UPPER),
    "demo": UPPER | {"inspection"},  # its report shows the masks
    # It trains as trials do, times projectors, and draws what they attend to.
    "study": UPPER | {"learning", "speed", "inspection"},
    "captioning": UPPER | {"inspection"},  # its report shows tables and bars
    "serving": UPPER,
    "planning": UPPER | {"speed"},  # host time is measured there
}
DEEPSPEED_HOMES = (
    "pargo_ds/assembly/zero.py",
    "pargo_ds/training/engine.py",
    "pargo_ds/train.py",
    "pargo_ds/convert/",
    "tools/bench_checkpoint.py",  # times DeepSpeed's own save beside ours
)
OPTIONAL_IN_MODEL = {"timm", "triton", "flash_attn"}


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted module) for each import of a file, relative ones resolved, functions
    included.
    """
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from pargo_ds import model` names the part only in the list of names.
            names = (
                [f"{module}.{alias.name}" for alias in node.names]
                if module == "pargo_ds"
                else [module]
            )
            yield from ((node.lineno, name) for name in names)


def part_of(dotted: str) -> str | None:
    """`pargo_ds.data.packing.plan` -> `data`; None for what is not ours."""
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "pargo_ds" and len(pieces) > 1 else None


def package_files() -> list[Path]:
    return sorted((ROOT / "pargo_ds").rglob("*.py"))


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_part_imports_only_what_lies_below_it(part: str) -> None:
    wrong = []
    for file in package_files():
        if part_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) != part:
            continue
        for line, module in imported_modules(file):
            target = part_of(module)
            if target is not None and target != part and target not in ALLOWED[part]:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    below = ", ".join(sorted(ALLOWED[part])) or "nothing of ours but itself"
    assert not wrong, f"{part} may import {below}:\n" + "\n".join(wrong)


def imported_files(file: Path) -> set[Path]:
    """The files of the package that a file imports, in functions too."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = ROOT.joinpath(*above, *(node.module or "").split("."))
        for alias in node.names:
            for path in (
                module / f"{alias.name}.py",
                module.with_suffix(".py"),
                module / "__init__.py",
            ):
                if path.is_file():
                    found.add(path)
                    break
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {file: imported_files(file) - {file} for file in package_files()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(str(path.relative_to(ROOT)) for path in reversed(error.args[1]))
        pytest.fail(f"these import each other: {circle}")


def test_every_part_has_a_rule() -> None:
    parts = {
        part_of(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in package_files()
    }
    unknown = parts - set(ALLOWED) - {"train", "__init__", None}
    assert not unknown, (
        f"no import rule for {sorted(unknown)}: place it in the table at the top of {__file__}"
    )


def test_nothing_in_the_package_imports_tools_tests_or_train() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in package_files()
        for line, module in imported_modules(file)
        if module.split(".")[0] in {"tools", "tests"} or part_of(module) == "train"
    ]
    assert not wrong, "command lines are the top; nothing imports them:\n" + "\n".join(wrong)


def test_tools_do_not_import_each_other_or_train() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in sorted((ROOT / "tools").glob("*.py"))
        for line, module in imported_modules(file)
        if module.split(".")[0] == "tools" or part_of(module) == "train"
    ]
    assert not wrong, "a tool is a thin command line over the package:\n" + "\n".join(wrong)


def test_deepspeed_appears_only_where_it_is_needed() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in [*package_files(), *sorted((ROOT / "tools").glob("*.py"))]
        for line, module in imported_modules(file)
        if module.split(".")[0] == "deepspeed"
        and not file.relative_to(ROOT).as_posix().startswith(DEEPSPEED_HOMES)
    ]
    assert not wrong, f"deepspeed is imported outside {', '.join(DEEPSPEED_HOMES)}:\n" + "\n".join(
        wrong
    )


def test_optional_packages_in_model_are_guarded() -> None:
    """transformers' remote-code scanner demands every import that is not inside try/except."""
    wrong = []
    for file in sorted((ROOT / "pargo_ds" / "model").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = {
            line for node in ast.walk(tree) if isinstance(node, ast.Try) for line in _lines(node)
        }
        wrong += [
            f"{file.relative_to(ROOT)}:{line} imports {module}"
            for line, module in imported_modules(file)
            if module.split(".")[0] in OPTIONAL_IN_MODEL and line not in guarded
        ]
    assert not wrong, "import these inside try / except ImportError:\n" + "\n".join(wrong)


def test_only_public_names_of_streaming_are_used() -> None:
    """Its private ones may change with any release, as may what a subclass of its classes
    overrides.
    """
    wrong = []
    for file in [*package_files(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").split(".")[0] == "streaming"
            ):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                if any(name.startswith("_") for name in names):
                    wrong.append(
                        f"{file.relative_to(ROOT)}:{node.lineno} imports {'.'.join(names)}"
                    )
    assert not wrong, "mosaicml-streaming is used by its public names only:\n" + "\n".join(wrong)


def _lines(node: ast.Try) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)
