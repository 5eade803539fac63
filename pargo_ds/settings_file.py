"""Read settings from YAML and JSON files, and refuse what different parsers would read differently.

PyYAML reads YAML 1.1, while editors and people expect YAML 1.2. `yes`, `010`, `1:30` and `1_000`
have different values in the two versions, and YAML 1.1 reads `1e-4` as a text. This module refuses
words that the two versions read differently and names their line; it reads floats and dates as YAML
1.2 does (a date is a text). It also refuses a key that occurs twice, because the parsers would drop
the first value silently.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pargo_ds.errors import ConfigError

KINDS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
CORE = {f"tag:yaml.org,2002:{kind}" for kind in KINDS}
DATE = "tag:yaml.org,2002:timestamp"
MERGE = "tag:yaml.org,2002:merge"
EXPONENT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Floats of YAML 1.2 that YAML 1.1 reads as texts, because they lack a dot or a sign."""
AMBIGUOUS = (
    (r"(?i:y|n|yes|no|on|off)", "a truth value or a text", "write true or false"),
    (r"[-+]?0[0-9_]+", "an octal number or a decimal one", "write it without the leading zero"),
    (r"[-+]?0[bo][0-9_]+", "a number or a text", "write a decimal number"),
    (
        r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?",
        "a number to the base 60 or a text",
        "write the number",
    ),
    (r"[-+]?[0-9][0-9a-fx.]*_[0-9a-f_.]*", "a number or a text", "write it without underscores"),
    (r"None", "nothing or a text", "write null"),
)
"""Words without quotes that parsers read differently: (pattern, possible meanings, what to write
instead).
"""
TEXT = "tag:yaml.org,2002:str"

ENDS = (yaml.StreamEndToken, yaml.BlockEndToken)
"""Tokens that PyYAML places after the end of the text and of all comments."""
NOT_OF_A_VALUE = (
    yaml.DocumentStartToken,
    yaml.DocumentEndToken,
    yaml.DirectiveToken,
    yaml.AnchorToken,
)
"""Tokens that a single value does not need; where they occur, a text in quotes was meant."""

KeyPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value, such as ("data", "train", 0, "path")."""


@dataclass(frozen=True)
class Settings:
    """The contents of a YAML text, and the line of each value, counted from 1."""

    values: Any
    lines: dict[KeyPath, int]


def _without_dates(resolvers: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    """PyYAML's (tag, pattern) of words without quotes, by their first letter."""
    kept = {}
    for first, known in resolvers.items():
        kept[first] = [(tag, pattern) for tag, pattern in known if tag != DATE]
    return kept


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the floats of YAML 1.2 and without dates."""

    yaml_implicit_resolvers = _without_dates(yaml.SafeLoader.yaml_implicit_resolvers)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also puts texts in quotes that `_Loader` would not read back."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
for _pattern, *_ in AMBIGUOUS:
    _Dumper.add_implicit_resolver("!ambiguous", re.compile(f"(?:{_pattern})$"), None)


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file.

    Raises ConfigError naming the file when it cannot be read or has another encoding.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file in UTF-8 (it may be in "
            "UTF-16 or in an encoding of Windows)"
        ) from error


def read_yaml(path: str | Path) -> Settings:
    """Read a YAML file. Raises ConfigError as `read_text` and `parse_yaml` do."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> Settings:
    """Read a YAML text.

    Raises ConfigError naming `source`, line and fault: broken YAML, a key twice, a word that YAML
    1.1 and 1.2 read differently, a tag that is not for plain settings.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is None:
            return Settings(None, lines)
        _check(node, (), source, lines, set())
        return Settings(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark else source
        said = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: not valid YAML: {said}") from error
    except ConfigError:
        raise
    except yaml.reader.ReaderError as error:
        place = f"{source}, line {text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(
            f"{place}: the character U+{error.character:04X} may not stand in YAML; remove it"
        ) from error
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _check(
    node: yaml.Node, keys: KeyPath, source: str, lines: dict[KeyPath, int], seen: set[int]
) -> None:
    """Note the lines of a node and of all nodes below it.

    Raises ConfigError for faults that PyYAML would accept silently.
    """
    lines.setdefault(keys, node.start_mark.line + 1)
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if node.tag not in CORE:
        raise ConfigError(
            f"{source}, line {node.start_mark.line + 1}: the tag {node.tag} is not for settings"
        )
    if isinstance(node, yaml.ScalarNode):
        _check_word(node, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _check(item, (*keys, index), source, lines, seen)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node, source)
        for key, value in node.value:
            below = keys
            if isinstance(key, yaml.ScalarNode):
                below = (*keys, key.value)
            lines.setdefault(below, key.start_mark.line + 1)
            _check(value, below, source, lines, seen)


def _check_keys(node: yaml.MappingNode, source: str) -> None:
    keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        _check_word(key, source)
    names = [key.value for key in keys if key.tag != MERGE]
    for name, count in Counter(names).items():
        if count > 1:
            first, *others = (key.start_mark.line + 1 for key in keys if key.value == name)
            again = ", ".join(map(str, others))
            raise ConfigError(
                f"{source}, line {again}: the key {name} stands in line {first} already; only one of them would count: "
                "put them together"
            )


def _check_word(node: yaml.ScalarNode, source: str) -> None:
    if node.style is not None and node.tag == TEXT:  # in quotes, or a block of text
        return
    for pattern, meanings, instead in AMBIGUOUS:
        if re.fullmatch(pattern, node.value):
            raise ConfigError(
                f"{source}, line {node.start_mark.line + 1}: {node.value} is {meanings}, depending on who reads it; "
                f"{instead}, or put it in quotes if it is a text"
            )


def parse_value(text: str, source: str) -> Any:
    """Parse a single value from the command line, such as `1e-4`, `[a, b]` or a text.

    Raises ConfigError as `parse_yaml` does, and when YAML would drop a part of the text because it
    looks like a comment, an anchor or a document mark.
    """
    values = parse_yaml(text, source).values
    tokens = list(yaml.scan(text, Loader=_Loader))
    for token in tokens:
        if isinstance(token, NOT_OF_A_VALUE):
            mark = text[token.start_mark.index : token.end_mark.index]
            raise ConfigError(
                f"{source}: {mark} would be dropped, it is no part of a value; put the value in quotes"
            )
    end = max(token.end_mark.index for token in tokens if not isinstance(token, ENDS))
    if text[end:].strip():
        raise ConfigError(
            f"{source}: {text[end:].strip()} would be dropped as a comment; put the value in quotes"
        )
    return values


def format_yaml(values: Any) -> str:
    """Write values as YAML text, from which `parse_yaml` reads the same values back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises ConfigError naming the file and the fault: unreadable, broken, a key twice, NaN or
    Infinity, no object.
    """
    try:
        values = json.loads(
            read_text(path), object_pairs_hook=_each_key_once, parse_constant=_no_number
        )
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds {type(values).__name__}, expected an object of settings: {{...}}"
        )
    return values


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(name for name, _ in pairs)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(
            f"the key {twice[0]} stands twice in one object; only the last would count"
        )
    return dict(pairs)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
