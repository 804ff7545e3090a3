"""Errors that a user can fix. The command line prints them as one message; every other exception keeps its traceback.

``OSError`` counts as such an error, too: a missing file, a full disk or a missing permission is a condition of the
user's machine, and its message names the path. Library code lets it pass, or adds what was being read or written.
"""

from __future__ import annotations


class DualfuseError(ValueError):
    """Invalid input, file, option or combination of options. The message says what was given and what to do instead."""


class MissingExtraError(DualfuseError, ImportError):
    """An optional dependency is not installed. The message holds the command that installs it."""

    def __init__(self, purpose: str, extra: str) -> None:
        """``purpose`` is what needs the dependency; ``extra`` is the name in ``pyproject.toml`` that provides it."""
        super().__init__(
            f"{purpose} needs the extra {extra!r}; in a checkout of dualfuse run: pip install '.[{extra}]'"
        )
