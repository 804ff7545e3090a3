"""Questions that come twice in a source."""

from __future__ import annotations


class Repeats:
    """Remembers what was asked."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._ids: set[object] = set()
        self._asked: set[int] = set()

    def look(self, number: object, image: str, text: str) -> tuple[str, str]:
        """Return the problem and the note, or empty texts, of the question ``text`` that its owners call ``number``.

        The same number again is a problem. The same text about the same image is only noted: owners ask it of other
        people, and count it.
        """
        asked = hash((image, text))  # of some millions no two are equal by chance
        problem = "its id came before" if number in self._ids else ""
        note = "the same text about the same image came before" if asked in self._asked else ""
        self._ids.add(number)
        self._asked.add(asked)
        return problem, note
