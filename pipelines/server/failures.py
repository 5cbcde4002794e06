"""Failures as OpenAI's error body: what a status, a code and a parameter a cause gets.

Messages come from this project's own errors, which quote no patient; of anything unforeseen only
the type is logged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from encoders.errors import (
    BadAnswer,
    ContextOverflow,
    CrossReadError,
    IncompatibleModel,
    InputError,
    ModelUnavailable,
    TimedOut,
    Unreachable,
)


class ApiError(CrossReadError):
    """A refusal or failure with its HTTP status.

    Args:
        status: of HTTP.
        message: what happened and what to do.
        code: a stable word for programs.
        param: the parameter at fault.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's body."""
        inner = {
            "message": self.message, "type": _KINDS.get(self.status, _kind(self.status)),
            "param": self.param, "code": self.code,
        }  # fmt: skip
        return {"error": inner}


class SlowReader(CrossReadError):
    """The client takes nothing of its answer."""


_KINDS: Mapping[int, str] = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    429: "rate_limit_error", 503: "service_unavailable_error", 504: "timeout_error",
}  # fmt: skip


def _kind(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"


_STATUS: tuple[tuple[type[CrossReadError], int], ...] = (
    (ContextOverflow, 400), (InputError, 400), (IncompatibleModel, 400), (TimedOut, 504),
    (Unreachable, 503), (ModelUnavailable, 503), (BadAnswer, 502),
)  # fmt: skip


_EMBEDS = ("prompt_embeds", "image_embeds", "audio_embeds")  # vLLM's
_RESTART_S = 5.0  # until a model is there again, about


def as_api_error(error: BaseException) -> ApiError:
    """Any exception as what the client is told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _malformed(error)
    if isinstance(error, CrossReadError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        after_s = _RESTART_S if isinstance(error, ModelUnavailable) else None
        return ApiError(status, str(error), code_of(error), retry_after_s=after_s)
    return ApiError(500, "an unexpected failure; the server's log names its kind", "internal_error")


def code_of(error: BaseException) -> str:
    """A stable word for a cause: the class's name, or OpenAI's own word where it has one."""
    if isinstance(error, ContextOverflow):
        return "context_length_exceeded"
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def _malformed(error: ValidationError) -> ApiError:
    """The first thing wrong with a body, by the parameter's name."""
    listed = error.errors(include_url=False, include_input=False)
    for each in listed:
        name = (each.get("ctx") or {}).get("tag") or str((each["loc"] or ("",))[-1])
        if name in _EMBEDS:
            return ApiError(
                403, f"{name} is off: this server takes no embeddings made elsewhere; send the words"
                " and media themselves", "embeds_off", param=_param(each),
            )  # fmt: skip
    first = listed[0]
    param, kind = _param(first), first["type"]
    if kind == "json_invalid":
        return ApiError(400, "the body is not JSON", "invalid_json")
    if kind == "extra_forbidden":
        return refused(str(param))
    code = "missing_required_parameter" if kind == "missing" else "invalid_value"
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", code, param=param)


def _param(error: Mapping[str, Any]) -> str | None:
    return ".".join(str(step) for step in error["loc"]) or None


def refused(param: str, why: str = "this server does not know it; leave it out") -> ApiError:
    """A parameter that is not honoured."""
    return ApiError(400, f"{param} is not supported: {why}", "unsupported_parameter", param=param)


def too_large(what: str, param: str | None = None) -> ApiError:
    """Over a limit of size."""
    return ApiError(413, what, "too_large", param=param)


def stage_of(error: BaseException) -> str:
    """Where a request failed, for the metrics."""
    if isinstance(error, SlowReader):
        return "slow_reader"
    status = as_api_error(error).status
    if status == 504:
        return "timeout"
    return "input" if status < 500 else "model"
