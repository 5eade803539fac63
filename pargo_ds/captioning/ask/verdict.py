"""What an endpoint's answer means: paid or not, to be asked again or not. Pure.

Retry-After and the kinds of status follow OpenAI's own client; what a provider does not bill (4xx,
5xx) costs nothing here, what broke after it was sent may have been billed.
"""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

AGAIN = (408, 409, 425, 429)
STOPS = {
    401: "the endpoint does not accept the key",
    402: "the account has no credit",
    403: "the key may not use this model or endpoint",
    404: "the endpoint has no such address or model",
}
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "credit balance")
NO_FORMAT = ("response_format", "json_schema", "structured")
"""Words of a refusal by which an endpoint says that it knows no structured answers."""


@dataclass(frozen=True)
class Verdict:
    """What became of one attempt.

    `kind`: answered (paid), again (not paid, ask once more), unknown (perhaps paid, ask once more),
    rejected (this image, not paid, never again), no_format (without `response_format`, please),
    stop (nobody gets an answer this way). `outcome` of an answered one: ok, length, refused,
    blocked.
    """

    kind: str
    reason: str = ""
    wait_s: float | None = None
    outcome: str = ""
    text: str = ""
    usage: dict[str, int] | None = None
    model: str = ""
    request_id: str = ""


def verdict(status: int, headers: Mapping[str, str], body: bytes) -> Verdict:
    """Judge a whole HTTP answer. Header names are compared without regard to case."""
    small = {name.lower(): value for name, value in headers.items()}
    said = body[:2000].decode(errors="replace")
    if status == 200:
        return _answer(body)
    if status == 429 and any(word in said for word in NO_CREDIT):
        return Verdict("stop", f"the account has no credit left (429: {_message(said)})")
    if status in STOPS:
        return Verdict("stop", f"{STOPS[status]} ({status}: {_message(said)})")
    if status in AGAIN or status >= 500:
        return Verdict("again", f"{status}: {_message(said)}", wait_s=retry_after(small))
    if status in (400, 422) and any(word in said for word in NO_FORMAT):
        return Verdict("no_format", f"{status}: {_message(said)}")
    if status in (400, 413, 415, 422):
        return Verdict("rejected", f"{status}: {_message(said)}")
    return Verdict("stop", f"the endpoint answers with the status {status}: {_message(said)}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an endpoint asks to wait (retry-after-ms, or Retry-After as seconds
    or a date); None when it does not say, or says nonsense or more than an hour.
    """
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif headers.get("retry-after", "").strip()[:1].isdigit():
            seconds = float(headers["retry-after"])
        else:
            date = email.utils.parsedate_to_datetime(headers["retry-after"])
            seconds = date.timestamp() - time.time()
    except (KeyError, ValueError, TypeError):
        return None
    if not 0 <= seconds <= 3600:
        return None
    return seconds


def _message(said: str) -> str:
    """The message within an error's body, short."""
    try:
        error = json.loads(said)["error"]
        if isinstance(error, dict):
            error = error["message"]
        said = str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(said.split())[:200] or "no reason given"


def _object(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in place of anything else."""
    if not isinstance(value, dict):
        return {}
    return value


def _usage_in(value: dict[str, Any]) -> dict[str, int] | None:
    """The tokens of the prompt and of the answer; None unless an answer tells both."""
    usage, counts = _object(value.get("usage")), {}
    for name in ("prompt_tokens", "completion_tokens"):
        count = usage.get(name)
        if not isinstance(count, int) or isinstance(count, bool):
            return None
        counts[name] = count
    return counts


def _answer(body: bytes) -> Verdict:
    """A 200: whole and therefore paid, whatever it says; half a body may be paid and says nothing."""
    try:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise ValueError("no object")
    except ValueError as error:
        return Verdict("unknown", f"the answer is no JSON ({str(error)[:80]})")
    first: dict[str, Any] = {}
    choices = value.get("choices")
    if isinstance(choices, list) and choices:
        first = _object(choices[0])
    message = _object(first.get("message"))
    text, finish = message.get("content"), first.get("finish_reason")
    if not isinstance(text, str):
        text = ""
    if message.get("refusal"):
        outcome, text = "refused", str(message["refusal"])
    elif finish == "content_filter" or not text.strip():
        outcome = "blocked"
    elif finish == "length":
        outcome = "length"
    else:
        outcome = "ok"
    return Verdict(
        "answered",
        outcome=outcome,
        text=text,
        usage=_usage_in(value),
        model=str(value.get("model") or ""),
        request_id=str(value.get("id") or ""),
    )
