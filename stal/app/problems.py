"""What goes wrong with a request, in the form of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from stal.echo import one_line

# OpenAI's names of kinds of errors, by status; others below 500 are "invalid_request_error".
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Problem(HTTPException):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one sentence, which may quote what came from anywhere.
        param: the field that is to blame.
        code: a word for programs.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, one_line(message), headers)
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status_code)
        if kind is None:
            kind = "server_error" if self.status_code >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.detail,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, self.headers)
