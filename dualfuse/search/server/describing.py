"""Images in answers, and filters in requests: names, fields and captions as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any

from dualfuse.errors import DualfuseError
from dualfuse.search.server.http.problems import Problem
from dualfuse.search.server.snapshot import Snapshot, image_id
from dualfuse.search.stores.filters import Condition, Value, fields, parse


def described(snapshot: Snapshot, name: str) -> dict[str, Any]:  # Any: JSON
    """Return what an answer says about an image, as ``schemas.CollectionImage``.

    Plain dictionaries: making and validating a model per hit took most of the time of a search.
    """
    size, changed = snapshot.size_and_time(name)
    kept = snapshot.kept(name)
    return {
        "id": image_id(name),
        "name": _unicode(name),
        "revision": snapshot.revision(name),
        "size": size,
        "time": changed,
        "caption": _unicode(str(kept.get("caption") or snapshot.captions.get(snapshot.key(name)) or "")),
        "fields": {_unicode(field): _json(value) for field, value in kept.items() if field != "caption"},
    }


def condition(where: dict[str, Any], snapshot: Snapshot) -> Condition | None:  # Any: JSON
    """Return the filter of a request, None for an empty one; ``Problem`` 422 for an unknown field or operator."""
    if not where:
        return None
    try:
        parsed = parse(where)
    except DualfuseError as error:
        raise Problem(422, str(error), param="where") from error
    known = {str(each["name"]) for each in snapshot.fields}
    if unknown := sorted(fields(parsed) - known):
        raise Problem(
            422,
            f"no image has the field {unknown[0][:80]!r}; the fields are {', '.join(sorted(known))[:500]}",
            param="where",
        )
    return parsed


def _json(value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _unicode(value) if isinstance(value, str) else value


def _unicode(text: str) -> str:
    """Return a text that JSON can hold: names of files may be any bytes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
