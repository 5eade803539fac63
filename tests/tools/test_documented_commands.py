"""Every command line that README, docs and --help texts show is one that its program takes."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from pargo_ds import train
from pargo_ds.config import load_config

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "tools").glob("*.py")),
    *sorted((ROOT / "pargo_ds").rglob("*.py")),
]
COMMAND = re.compile(
    r"^\s{2,}(?:[A-Z_]+=\S+ )*(?:python (?P<tool>tools/\w+\.py)|.*-?-m(?:odule)? pargo_ds\.train) (?P<arguments>.*)$"
)
PLACEHOLDERS = ("...", "…", "[", "$")
"""What stands in lines that describe a call instead of being one."""
WITHOUT_PARSER = {
    "tools/bench_step.py",
    "tools/fetch_caption_parts.py",
    "tools/fetch_models.py",
    "tools/prepare_demo_parts.py",
}
"""They make their parser where they use it."""


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """(place, tool or "", arguments) of each command line."""
    for page in PAGES:
        text = re.sub(r"\\+\n", " ", page.read_text(encoding="utf-8"))
        for number, line in enumerate(text.splitlines(), 1):
            found = COMMAND.match(line)
            if found is None or any(mark in line for mark in PLACEHOLDERS):
                continue
            arguments = found["arguments"].split(" && ")[0].split(" | ")[0]
            words = shlex.split(arguments, comments=True)
            yield f"{page.relative_to(ROOT)}:{number}", found["tool"] or "", words


COMMANDS = list(commands())


def parser_of(tool: str) -> Callable[[list[str]], Any]:
    return importlib.import_module(Path(tool).stem).parse_arguments


def test_the_pages_show_many_commands():
    assert len(COMMANDS) > 100
    assert {tool for _, tool, _ in COMMANDS} >= {"", "tools/study.py", "tools/build_shards.py"}


@pytest.mark.parametrize("tool", sorted({t for _, t, _ in COMMANDS if t} - WITHOUT_PARSER))
def test_a_tool_takes_the_command_lines_that_the_pages_show(tool, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    parse = parser_of(tool)
    faults = []
    for place, own, words in COMMANDS:
        if own != tool or "--help" in words:
            continue
        try:
            parse(words)
        except SystemExit:
            said = capsys.readouterr().err.strip().splitlines()[-1]
            faults.append(f"{place}: {' '.join(words)}: {said}")
    assert not faults, "\n".join(faults)


def test_a_shipped_run_file_takes_the_settings_that_the_pages_give_it():
    tried = 0
    for place, tool, words in COMMANDS:
        if tool:
            continue
        options = train.parse_arguments(words)
        if (ROOT / options.run_file).is_file():
            tried += 1
            try:
                load_config(ROOT / options.run_file, options.set)
            except ValueError as error:
                pytest.fail(f"{place}: {error}")
    assert tried >= 5
