"""What tests do on the page, and what they see there."""

from __future__ import annotations

import base64
import json
import re
from typing import Any
from urllib.request import Request, urlopen

from playwright.sync_api import JSHandle, Locator, Page, Response, expect

STALE = re.compile(r"\bstale\b")


class SearchPage:
    """The page of a service; every method waits until the answer is shown."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def open(self, query: str = "") -> SearchPage:
        self.page.goto(self.address + "/" + query)
        return self.settled()

    def settled(self) -> SearchPage:
        expect(self.page.locator("#grid .card, #empty:visible").first).to_be_attached()
        expect(self.page.locator("#grid")).not_to_have_class(STALE)
        return self

    def search(self, text: str) -> dict[str, Any]:
        """Type a query, press Enter, and return the request that was sent."""
        box = self.page.locator("#text")
        box.fill(text)
        with self.page.expect_response(is_search(reranked=True)) as answer:
            box.press("Enter")
        self.settled()
        return request_of(answer.value)

    @property
    def cards(self) -> Locator:
        return self.page.locator("#grid .card:visible")

    def names(self) -> list[str]:
        return self.page.locator("#grid .card:visible .name").evaluate_all("all => all.map(each => each.title)")

    def api(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of the API itself."""
        headers = {"Content-Type": "application/json"}
        with urlopen(Request(self.address + path, json.dumps(body).encode(), headers), timeout=60) as answer:
            return json.load(answer)

    def files(self, data: bytes, kind: str = "image/png") -> JSHandle:
        """Return a DataTransfer with one file."""
        return self.page.evaluate_handle(
            """([content, type]) => {
                const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0)), data = new DataTransfer();
                data.items.add(new File([bytes], "query", { type }));
                return data;
            }""",
            [base64.b64encode(data).decode(), kind],
        )

    def drop(self, data: bytes, kind: str = "image/png") -> None:
        files = self.files(data, kind)
        self.page.dispatch_event("body", "dragenter", {"dataTransfer": files})
        expect(self.page.locator("#drop")).to_be_visible()
        self.page.dispatch_event("body", "drop", {"dataTransfer": files})
        expect(self.page.locator("#drop")).to_be_hidden()

    def scroll_width(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth")


def is_search(*, reranked: bool | None = None):
    """Return the test of a response of a search, with or without re-ranking."""

    def matches(response: Response) -> bool:
        if not response.url.endswith("/v1/search"):
            return False
        return reranked is None or bool(request_of(response)["rerank"]) == reranked

    return matches


def request_of(response: Response) -> dict[str, Any]:
    return json.loads(response.request.post_data or "{}")
