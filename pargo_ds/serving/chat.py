"""The body of a chat request -> turns, addresses of images and settings, or a refusal. Pure.

Fields are those of OpenAI's chat completions. One that would change the answer and cannot be
honoured is refused by name, never passed by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pargo_ds.data.shards.schema import IMAGE_PLACEHOLDER
from pargo_ds.serving.refusals import RequestError

CHANGES_NOTHING = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
)  # fmt: skip
"""What clients send for the provider's own purposes."""

MOST_STOPS = 4
"""Stop strings of a request, as at OpenAI."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """null says what leaving out says; clients send it for all that they know."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class TextPart(_Section):
    """Words."""

    type: Literal["text"]
    text: str


class ImageAddress(_Section):
    """Where an image is; `detail` has no meaning for an encoder of one size."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Section):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageAddress


class Message(_Section):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    name: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        if isinstance(given, str):
            return [{"type": "text", "text": given}]
        return given


class StreamOptions(_Section):
    """Whether a last event tells the numbers of tokens."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """`text` is what there is."""

    type: str


class Body(_Section):
    """A chat request as it is sent."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=1)
    response_format: ResponseFormat | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        if isinstance(given, str):
            return [given]
        return given


@dataclass(frozen=True)
class Settings:
    """How an answer is generated. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A request that can be honoured: turns with `<image>` in them, and an address for each."""

    turns: list[dict[str, str]]
    addresses: list[str]
    settings: Settings
    stream: bool
    usage: bool
    """Whether the stream ends with the numbers of tokens."""


def read_chat(data: bytes, *, model: str, most_tokens: int, most_images: int) -> Chat:
    """Read the request in a body of JSON.

    Raises RequestError: 404 for another model than `model`, 400 for whatever else does not fit.
    """
    body = _body(data)
    if body.model != model:
        raise RequestError(
            404,
            f"the model '{_short(body.model)}' does not exist here: there is '{model}'",
            param="model",
            code="model_not_found",
        )
    turns, addresses = _conversation(body.messages)
    if len(addresses) > most_images:
        raise RequestError(
            400,
            f"{len(addresses)} images: this server takes at most {most_images} in a request",
            param="messages",
        )
    return Chat(
        turns=turns,
        addresses=addresses,
        settings=_settings(body, most_tokens),
        stream=body.stream,
        usage=body.stream_options.include_usage,
    )


def _body(data: bytes) -> Body:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body is not JSON") from error
    if not isinstance(found, dict):
        raise RequestError(400, "the body is no JSON object")
    _refuse_format(found.get("response_format"))
    known = {name: value for name, value in found.items() if name not in CHANGES_NOTHING}
    try:
        return Body.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise RequestError(400, _said(param, first["type"], first["msg"]), param=param) from error


def _said(param: str | None, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"'{_short(str(param))}' is not supported by this server: leave it out"
    return f"{_short(str(param))}: {message}"


def _refuse_format(given: Any) -> None:
    """Captioning asks without a schema when it is told so, by 400 and this name."""
    if isinstance(given, dict) and given.get("type") != "text":
        raise RequestError(
            400,
            "response_format is not supported: this server answers in free text. Ask for JSON in "
            "the prompt",
            param="response_format",
            code="unsupported_value",
        )


def _conversation(messages: list[Message]) -> tuple[list[dict[str, str]], list[str]]:
    """(turns, addresses of the images in order); the parts of a turn stand on lines of their own,
    as in training."""
    turns, addresses = [], []
    for number, message in enumerate(messages):
        words = []
        for part in message.content:
            if isinstance(part, ImagePart):
                if message.role != "user":
                    raise _refused(number, "images belong into messages of the user")
                words.append(IMAGE_PLACEHOLDER)
                addresses.append(part.image_url.url)
                continue
            _check_words(part.text, number)
            words.append(part.text)
        role = "system" if message.role == "developer" else message.role
        turns.append({"role": role, "content": "\n".join(words)})
    if turns[-1]["role"] != "user":
        raise _refused(len(turns) - 1, "the last message must be the user's")
    return turns, addresses


def _check_words(text: str, number: int) -> None:
    if IMAGE_PLACEHOLDER in text:
        raise _refused(
            number, f"its text holds {IMAGE_PLACEHOLDER}; send images as parts of type image_url"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(number, "its text holds half of a surrogate pair") from error


def _refused(number: int, reason: str) -> RequestError:
    return RequestError(400, f"messages.{number}: {reason}", param=f"messages.{number}")


def _settings(body: Body, most: int) -> Settings:
    asked = body.max_completion_tokens or body.max_tokens
    if asked is None:
        asked = most
    if asked > most:
        raise RequestError(
            400, f"max_tokens {asked}: this server answers with at most {most}", param="max_tokens"
        )
    return Settings(
        max_tokens=asked,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        stop=tuple(body.stop),
    )


def _short(text: str) -> str:
    if len(text) > 80:
        return f"{text[:80]}..."
    return text
