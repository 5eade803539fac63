"""One request: its key, and its body as any OpenAI-compatible endpoint takes it.

The key stands for what is asked: image bytes, prompt, model, parameters. It does not depend on the
endpoint's address, on a run or on how the schema is conveyed, so what was bought in one run is not
bought again in another one, online or as a batch.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from typing import Any

from pargo_ds.captioning.ask.prompt import Prompt
from pargo_ds.captioning.select.image_hash import image_digest
from pargo_ds.data.sources.images import prepared

TYPES = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"))


@dataclass(frozen=True)
class Parameters:
    """What is asked of a model: `longest_side` in pixels of the image that is sent."""

    model: str
    longest_side: int = 1024
    max_tokens: int = 700
    temperature: float = 0.2

    def longer(self) -> Parameters:
        """Return the parameters with which an answer that was cut is asked for once more."""
        return replace(self, max_tokens=2 * self.max_tokens)


@dataclass(frozen=True)
class Job:
    """An image that is to be captioned, with its alt text ("" for none)."""

    id: str
    image: bytes
    coarse: str = ""


def request_key(job: Job, prompt: Prompt, parameters: Parameters) -> str:
    """Return 32 hexadecimal digits that stand for the request."""
    said = {
        "image": image_digest(job.image),
        "texts": prompt.texts(job.coarse),
        "schema": prompt.schema,
        **asdict(parameters),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def requests_of(
    job: Job, prompt: Prompt, parameters: Parameters, cut: Container[str]
) -> list[tuple[str, Parameters]]:
    """Return the requests of a job, the last of which has its answer: one, or two when the first
    one's key is in `cut`, because its answer ended at max_tokens.
    """
    key = request_key(job, prompt, parameters)
    if key not in cut:
        return [(key, parameters)]
    longer = parameters.longer()
    return [(key, parameters), (request_key(job, prompt, longer), longer)]


def request_body(
    job: Job, prompt: Prompt, parameters: Parameters, *, response_format: bool = True
) -> dict[str, Any]:
    """Return the JSON body of a chat completion; the image is made smaller first and sent as a
    data: URL.

    Without `response_format` the schema stands in the prompt. Raises Reject for a broken image.
    """
    texts = prompt.texts(job.coarse, schema_in_words=not response_format)
    image = prepared(job.image, 0, parameters.longest_side)
    address = f"data:{_type(image)};base64,{base64.b64encode(image).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "text", "text": texts["user"]},
    ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if texts["system"]:
        messages.insert(0, {"role": "system", "content": texts["system"]})
    body: dict[str, Any] = {
        "model": parameters.model,
        "messages": messages,
        "max_tokens": parameters.max_tokens,
        "temperature": parameters.temperature,
    }
    if response_format and prompt.schema is not None:
        schema = {"name": prompt.id, "strict": True, "schema": prompt.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _type(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return next((name for start, name in TYPES if image.startswith(start)), "image/png")
