"""What a client is told when it gets no answer, in OpenAI's form of an error."""

from __future__ import annotations

from typing import Any

KINDS = {401: "authentication_error", 429: "rate_limit_error"}


class RequestError(Exception):
    """A request that gets no answer; its message may be read by the client.

    `status` is HTTP's; `param` names the part of the request that is at fault, `code` is OpenAI's
    word for what happened, `retry_after_s` says when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with it."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(self.retry_after_s)}

    def body(self) -> dict[str, Any]:
        """Return {"error": {"message", "type", "param", "code"}}."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = KINDS.get(self.status, usual)
        return {
            "error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        }
