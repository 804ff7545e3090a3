"""Reads the json files of published data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dualfuse.errors import DualfuseError

HEAD = 4096  # bytes that tell what a large file is


def read_json(path: Path, short: Callable[[dict[str, Any]], object] | None = None) -> Any:  # foreign: any values
    """Return the content of ``path``; ``short`` makes small values of its objects while it is read.

    The files have millions of objects, each of them ten times as large in memory as what is needed of it. Raises
    ``DualfuseError`` with the path for what is no json, or is no object that ``short`` takes.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=short)
    except KeyError as error:
        raise DualfuseError(f"{path} has an entry without {error}; is it the file that its owners publish?") from None
    except (ValueError, RecursionError) as error:
        raise DualfuseError(f"{path} is no json file, or is cut off ({error}); download it again") from None


def entries(path: Path, name: str, short: Callable[[dict[str, Any]], object]) -> list[Any]:
    """Return the list called ``name`` in the object at ``path``, its entries made small by ``short``."""
    content = read_json(path, short)
    if not isinstance(content, Mapping) or not isinstance(content.get(name), list):
        raise DualfuseError(f"{path} has no list {name!r}; is it the file that its owners publish?")
    return content[name]


def head(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD)
