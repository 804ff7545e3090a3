"""Third-party checkpoint formats: one file each, with the names, the config, reading and writing."""

from __future__ import annotations

from dualfuse.convert.checkpoint import Format
from dualfuse.convert.formats import (
    beit,
    bridgetower_hf,
    bridgetower_official,
    clip_hf,
    clip_openai,
    open_clip,
    packaged,
    siglip_hf,
    vlmo_official,
)
from dualfuse.errors import DualfuseError

FORMATS: list[Format] = [
    packaged.FORMAT,  # the only one that recognizes a name, which the others would read as a file
    bridgetower_hf.FORMAT,
    bridgetower_official.FORMAT,
    vlmo_official.FORMAT,
    beit.FORMAT,
    clip_hf.FORMAT,
    siglip_hf.FORMAT,
    open_clip.FORMAT,
    clip_openai.FORMAT,
]
"""All formats, in the order in which they are asked whether they recognize a source."""


def register_format(new: Format) -> None:
    """Add a format, such as one of a plug-in; ``DualfuseError`` if its name is taken.

    A module that is executed again, after an edit, replaces its own format.
    """
    FORMATS[:] = [known for known in FORMATS if (known.name, known.read.__module__) != (new.name, new.read.__module__)]
    if any(entry.name == new.name for entry in FORMATS):
        raise DualfuseError(f"there is a checkpoint format {new.name!r} already; give the new one another name")
    FORMATS.append(new)


def targets() -> tuple[str, ...]:
    """Return the values of ``convert --to`` that write third-party formats."""
    return tuple(dict.fromkeys(entry.target for entry in FORMATS if entry.target))
