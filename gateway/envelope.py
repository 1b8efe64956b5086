"""Errors as clients expect them: OpenAI's envelope, and Anthropic's on its routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from contracts.errors import FareboxError, UsageError

__all__ = ["Headers", "Problem", "Refused", "error_body", "error_event", "is_anthropic"]

Headers = list[tuple[bytes, bytes]]

_OPENAI_TYPES = {
    402: "payment_required",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error answer before it has a dialect: HTTP status, stable `code`, one line for a person."""

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    headers: Headers = field(default_factory=list)

    @classmethod
    def of(cls, error: FareboxError, *, headers: Headers | None = None) -> Problem:
        """Return the answer that `error` deserves: what happened, and what to do."""
        message = error.message.rstrip(".")
        # Whoever calls over HTTP has no --help.
        if error.advice != UsageError.remedy:
            message += f"; {error.advice}"
        return cls(error.http_status, error.code, message, error.retry_after_s, headers or [])


class Refused(Exception):
    """Ends the handling of a request with `problem`; nothing was claimed for it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def is_anthropic(path: str) -> bool:
    """Tell whether clients of this route read Anthropic's envelope."""
    return path.startswith("/v1/messages")


def error_body(path: str, problem: Problem) -> bytes:
    """Return the JSON body of `problem` in the dialect of `path`."""
    return msgspec.json.encode(_document(path, problem))


def error_event(path: str, problem: Problem) -> bytes:
    """Return `problem` as the last server-sent event of a stream whose status line has left already."""
    data = msgspec.json.encode(_document(path, problem))
    return (b"event: error\n" if is_anthropic(path) else b"") + b"data: " + data + b"\n\n"


def _document(path: str, problem: Problem) -> dict[str, Any]:
    other = "invalid_request_error" if problem.status < 500 else "api_error"
    if is_anthropic(path):
        kind = _ANTHROPIC_TYPES.get(problem.status, other)
        return {"type": "error", "error": {"type": kind, "message": problem.message, "code": problem.code}}
    kind = _OPENAI_TYPES.get(problem.status, other)
    return {"error": {"message": problem.message, "type": kind, "code": problem.code, "param": None}}
