"""A prompt file: what is asked of a captioner, with a version and a hash that goes into each
caption's provenance.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pargo_ds.errors import CaptionError
from pargo_ds.section import Section, faults_of
from pargo_ds.settings_file import read_yaml

DEFAULT = Path(__file__).parent / "prompts" / "global_partial_v1.yaml"
HINT = "{coarse}"
"""Where the user's text may name the alt text."""


class _PromptFile(Section):
    """The keys of a prompt file."""

    id: str
    version: int
    user: str
    system: str = ""
    # JSON Schema of the answer; without one the whole answer is taken for the global caption.
    schema_: dict[str, Any] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt: `schema` is the JSON Schema of the answer, `digest` stands for all of the file's
    meaning (not its comments).
    """

    id: str
    version: int
    system: str
    user: str
    schema: dict[str, Any] | None
    digest: str

    @property
    def name(self) -> str:
        """global_partial_v1@0123456789ab"""
        return f"{self.id}_v{self.version}@{self.digest[:12]}"

    def texts(self, coarse: str, *, schema_in_words: bool = False) -> dict[str, str]:
        """Return the texts by role, with the alt text where the prompt has {coarse}.

        `schema_in_words` is for servers that refuse `response_format`.
        """
        user = self.user.replace(HINT, coarse).strip()
        if schema_in_words and self.schema is not None:
            user += "\nAnswer with one JSON object and nothing else. It fits this JSON Schema: "
            user += json.dumps(self.schema)
        return {"system": self.system.strip(), "user": user}


def read_prompt(path: str | Path = DEFAULT) -> Prompt:
    """Read a prompt file. Raises CaptionError naming the file and each fault."""
    values = read_yaml(path).values
    if isinstance(values, dict) and "schema" in values:
        values = {**values, "schema_": values["schema"]}  # pydantic has a method of that name
        del values["schema"]
    try:
        found = _PromptFile.model_validate(values)
    except ValidationError as error:
        said = faults_of(error, _PromptFile, str(path)).replace("schema_", "schema")
        raise CaptionError(said) from error
    if not found.user.strip():
        raise CaptionError(f"{path}: user is empty; write there what is asked")
    content = json.dumps(found.model_dump(), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Prompt(found.id, found.version, found.system, found.user, found.schema_, digest)
