"""What tests of HTML pages share: a parser that checks them, and a small source of data for the demo."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from dualfuse.data.shards.shards import Shards
from dualfuse.prepare.shard_writer import ShardWriter
from dualfuse.report.demo import run

NOT_CLOSED = {"meta", "img", "br", "link", "input"}


def few_pictures(folder: Path) -> Path:
    """Write a source like examples/openpics-mini, with 24, 6 and 20 of its images."""
    everything = Shards.open(run.EXAMPLES / "openpics-mini-test-00000.tar")
    first = 0
    for split, number in (("train", 24), ("val", 6), ("test", 20)):
        writer = ShardWriter(folder, f"few-{split}")
        for sample in everything[first : first + number]:
            writer.add(replace(sample, key=sample.key.rpartition("/")[2]))
        writer.close()
        first += number
    (folder / run.AUTHORS).write_text("those who drew them\n")
    return folder


class Page(HTMLParser):
    """Reads a page; what is opened must be closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.seen: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in NOT_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.seen.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.links.append((tag, value or ""))
            self.ids += [value or ""] if name == "id" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def needs_nothing(html: str) -> Page:
    page = Page(html)
    assert len(set(page.ids)) == len(page.ids)
    assert not {"script", "link", "iframe", "object"} & set(page.seen)
    for tag, link in page.links:
        assert link.startswith("data:image/") if tag == "img" else link[:1] == "#" or link == "ATTRIBUTION.txt"
        assert not link.startswith("#") or link[1:] in page.ids
    assert all(used in page.ids for used in re.findall(r"url\(#([^)]+)\)", html))
    assert not re.findall(r"url\((?!#)|@import|https?://", html)
    return page


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
