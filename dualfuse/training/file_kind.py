"""What a file is that should have held tensors."""

from __future__ import annotations

import json
import re
from pathlib import Path


def describe(path: Path) -> str:
    """Return what a file is that should have held tensors, in words that complete "it is …"."""
    if not path.exists():
        return "not there"
    if path.is_dir():
        return "a folder"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    kinds = (
        (not head, "an empty file"),
        (head.startswith(b"version https://git-lfs"), "a git-lfs pointer, not the file itself (run: git lfs pull)"),
        (head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")), "an HTML page (a login or error page?)"),
        (head.startswith(b"PK\x03\x04"), "a zip archive, as torch.save writes"),
        (re.match(rb"\x80[\x02-\x05]", head), "a Python pickle, as older torch.save wrote"),
        (head[257:262] == b"ustar", "a tar archive"),
        (head.startswith(b"\x1f\x8b"), "a gzip archive"),
    )
    for fits, words in kinds:
        if fits:
            return f"{words} ({size} bytes)"
    return _describe_safetensors(path, head, size)


def _describe_safetensors(path: Path, head: bytes, size: int) -> str:
    """A safetensors file is the length of its header (8 bytes), the header (JSON), and the numbers."""
    length = int.from_bytes(head[:8], "little")
    if not head[8:].startswith(b"{"):
        return f"truncated or not a safetensors file ({size} bytes)"
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(8 + min(length, size))[8:])
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError):
        return f"a truncated or damaged safetensors file ({size} bytes)"
    whole = 8 + length + end
    return f"a {'' if size == whole else 'truncated '}safetensors file ({size} of {whole} bytes)"
