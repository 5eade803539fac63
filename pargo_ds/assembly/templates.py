"""The chat template of a run, from the tokenizer or from a file. It does not depend on the date."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

from pargo_ds.config import LLMSection
from pargo_ds.errors import ConfigError

TODAY = re.compile(r"strftime_now\s*\(\s*(['\"])((?:(?!\1).)*)\1\s*\)")
CALLED = re.compile(r"strftime_now\s*\(")

Template = str | dict[str, str]


def run_template(llm: LLMSection, own: Template | None) -> Template | None:
    """Return the template of a run: that of the run file, or `own`, the template of the tokenizer
    or of the exported processor. Dates in it are fixed.

    Raises ConfigError for a file that cannot be read, and for a template that writes today's date
    when the run file has no date.
    """
    template = own
    if llm.chat_template is not None:
        template = _from_file(llm.chat_template)
    if template is None or llm.prompt == "paper":
        return template
    if isinstance(template, dict):
        return {name: dated(text, llm.template_date) for name, text in template.items()}
    return dated(template, llm.template_date)


def dated(template: str, date: str | None) -> str:
    """Return the template with `date` (ISO) in every place where it asks for today's date.

    Raises ConfigError when it asks for the date and `date` is None, or when it asks in a way that
    is not supported.
    """
    if CALLED.search(template) is None:
        return template
    if date is None:
        raise ConfigError(
            "llm: the chat template writes today's date (strftime_now), so ids would differ from day to day. Give one "
            "date, such as llm.template_date: 2026-01-31 (written on every day, by the export too), or a template "
            "without it in llm.chat_template"
        )
    day = datetime.date.fromisoformat(date)
    fixed = TODAY.sub(lambda call: json.dumps(day.strftime(call[2]), ensure_ascii=False), template)
    if CALLED.search(fixed) is not None:
        raise ConfigError(
            "llm: the chat template calls strftime_now with a format that is no plain text, so it cannot be fixed; "
            "give a template without it in llm.chat_template"
        )
    return fixed


def _from_file(name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"llm.chat_template: {name} cannot be read ({error}); expected a file with a Jinja template"
        ) from error
    if not text.strip():
        raise ConfigError(f"llm.chat_template: {name} is empty; expected a Jinja template")
    return text
