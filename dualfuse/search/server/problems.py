"""Errors of a request: a status, and a message that says what to change."""

from __future__ import annotations


class Problem(Exception):
    """A request that cannot be answered. ``param`` names the field of the request that has to change."""

    def __init__(self, status: int, message: str, *, param: str = "", retry_after: float = 0.0) -> None:
        """``status`` is 4xx or 503; ``retry_after`` are seconds, 0 for none."""
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the JSON of the answer, in the shape of the OpenAI API."""
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        return {
            "error": {"message": str(self), "type": kind, "param": self.param or None, "code": CODES.get(self.status)}
        }


CODES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    409: "index_changed",
    413: "too_large",
    415: "not_an_image",
    422: "invalid",
    429: "overloaded",
    501: "not_supported",
    503: "not_ready",
}
