"""Cursors: where the next page of an answer starts, and of which query and index version."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from hashlib import blake2b

from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.options import Limits


@dataclass(frozen=True)
class Page:
    """Where a page starts."""

    offset: int
    version: str
    """Of the index."""
    query: str
    """A digest of the query."""
    rerank: int = 0
    """Hits that were re-ranked for the first page; equal for all pages, so that their orders fit together."""

    def at(self, offset: int) -> Page:
        """Return another page of the same query."""
        return replace(self, offset=offset)

    def encode(self) -> str:
        """Return the cursor."""
        values = [self.offset, self.version, self.query, self.rerank]
        return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()

    @staticmethod
    def decode(cursor: str, limits: Limits) -> Page:
        """Return the page of a cursor; ``Problem`` 422 for anything else."""
        try:
            offset, version, query, rerank = json.loads(base64.urlsafe_b64decode(cursor))
            in_bounds = 0 <= offset <= limits.depth and 0 <= rerank <= limits.rerank
            if type(offset) is not int or type(rerank) is not int or not in_bounds:
                raise ValueError
            return Page(offset, str(version), str(query), rerank)
        except (ValueError, TypeError, RecursionError) as error:
            raise Problem(422, "this cursor was not given by an earlier answer", param="cursor") from error


def continued(cursor: str, first: Page, limits: Limits) -> Page:
    """Return the page that a cursor continues with, ``first`` without one; ``Problem`` if it belongs elsewhere."""
    if not cursor:
        return first
    page = Page.decode(cursor, limits)
    if page.query != first.query:
        raise Problem(422, "this cursor belongs to another query; send the query unchanged", param="cursor")
    if page.version != first.version:
        raise Problem(409, "the index has changed since the page before; search again without cursor", param="cursor")
    return page


def digest(query: bytes) -> str:
    """Return what stands for a query in cursors."""
    return blake2b(query, digest_size=6).hexdigest()
