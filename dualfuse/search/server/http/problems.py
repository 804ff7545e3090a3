"""Errors of a request: a status, and a message that says what to change."""

from __future__ import annotations

from starlette.exceptions import HTTPException


class Problem(HTTPException):
    """A request that cannot be answered. ``param`` names the field of the request that has to change.

    It is an HTTPException, so that FastAPI lets it pass when the body of a request turns out to be too large.
    """

    def __init__(self, status: int, message: str, *, param: str = "", retry_after: float = 0.0) -> None:
        """``status`` is 4xx or 503; ``retry_after`` are seconds, 0 for none."""
        super().__init__(status, message)
        self.status, self.param, self.retry_after = status, param, retry_after

    @property
    def headers_to_send(self) -> dict[str, str]:
        """The headers of the answer."""
        headers = {"Retry-After": str(max(1, round(self.retry_after)))} if self.retry_after else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON of the answer, in the shape of the OpenAI API."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        code = CODES.get(self.status)
        return {"error": {"message": self.detail, "type": kind, "param": self.param or None, "code": code}}


KINDS = {401: "authentication_error", 429: "rate_limit_error"}
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "index_changed",
    413: "too_large",
    415: "not_an_image",
    416: "range_not_satisfiable",
    422: "invalid",
    429: "overloaded",
    500: "internal",
    501: "not_supported",
    503: "not_ready",
}
