"""Statements about scenes: their captions, and whether they are true or false by the coordinates of the shapes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from dualfuse.data.scenes.shapes import FORMS, KINDS, Scene, Shape

INVERSE = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
NUMBERS = ("zero", "one", "two", "three", "four")


class Statement(ABC):
    """A statement that a scene can make true, make false, or leave undecided."""

    @property
    @abstractmethod
    def phrase(self) -> str:
        """The statement as a caption."""

    @abstractmethod
    def holds(self, scene: Scene) -> bool:
        """Return whether the scene makes the statement true beyond doubt."""

    @abstractmethod
    def fails(self, scene: Scene) -> bool:
        """Return whether the scene makes the statement false beyond doubt."""

    @property
    def captions(self) -> tuple[str, ...]:
        """The two ways to write the statement."""
        return self.phrase, f"{self._opening} {self.phrase}"

    @property
    def _opening(self) -> str:
        return "there is"


@dataclass(frozen=True)
class Relation(Statement):
    """How a shape of the kind ``first`` lies to one of the kind ``second``: "a small red circle above a ..."."""

    first: str
    relation: str
    second: str

    @property
    def phrase(self) -> str:
        """The statement as a caption."""
        return f"a {self.first} {self.relation} a {self.second}"

    @property
    def inverse(self) -> Relation:
        """The same statement from the other end."""
        return Relation(self.second, INVERSE[self.relation], self.first)

    def holds(self, scene: Scene) -> bool:
        """Return whether two such shapes are in neighboring cells, in this relation."""
        pairs = self._pairs(scene)
        return any(self._is_ordered(*pair) and _neighbors(*pair, self.relation) for pair in pairs)

    def fails(self, scene: Scene) -> bool:
        """Return whether no two such shapes have centers in this order; so also if a kind is absent."""
        return not any(self._is_ordered(one, other) for one, other in self._pairs(scene))

    def _pairs(self, scene: Scene) -> list[tuple[Shape, Shape]]:
        return [(one, other) for one in scene for other in scene if (one.kind, other.kind) == (self.first, self.second)]

    def _is_ordered(self, one: Shape, other: Shape) -> bool:
        match self.relation:
            case "left of":
                return one.x < other.x
            case "right of":
                return one.x > other.x
            case "above":
                return one.y < other.y
            case _:
                return one.y > other.y


def _neighbors(one: Shape, other: Shape, relation: str) -> bool:
    """Return whether two cells share a side, across which the relation is."""
    apart = {"left of": (1, 0), "right of": (1, 0), "above": (0, 1), "below": (0, 1)}[relation]
    return (abs(one.cell % 2 - other.cell % 2), abs(one.cell // 2 - other.cell // 2)) == apart


@dataclass(frozen=True)
class Both(Statement):
    """A scene has shapes of two kinds: "a small red circle and a large blue square"."""

    first: str
    second: str

    @property
    def phrase(self) -> str:
        """The statement as a caption."""
        return f"a {self.first} and a {self.second}"

    def holds(self, scene: Scene) -> bool:
        """Return whether both kinds are in the scene."""
        return {self.first, self.second} <= {shape.kind for shape in scene}

    def fails(self, scene: Scene) -> bool:
        """Return whether one of the kinds is absent."""
        return not self.holds(scene)


@dataclass(frozen=True)
class Without(Statement):
    """A scene has one kind and lacks the other: "a small red circle and no large blue square"."""

    present: str
    absent: str

    @property
    def phrase(self) -> str:
        """The statement as a caption."""
        return f"a {self.present} and no {self.absent}"

    def holds(self, scene: Scene) -> bool:
        """Return whether the one kind is in the scene and the other is not."""
        kinds = {shape.kind for shape in scene}
        return self.present in kinds and self.absent not in kinds

    def fails(self, scene: Scene) -> bool:
        """Return whether the one kind is absent or the other present."""
        return not self.holds(scene)


@dataclass(frozen=True)
class Counts(Statement):
    """A scene has exactly these numbers of shapes of two forms: "two circles and one square"."""

    first: tuple[int, str]
    """Number, 1 to 4, and form."""
    second: tuple[int, str]

    @property
    def phrase(self) -> str:
        """The statement as a caption."""
        return " and ".join(f"{NUMBERS[count]} {form}{'s' * (count > 1)}" for count, form in (self.first, self.second))

    @property
    def _opening(self) -> str:
        return "there is" if self.first[0] == 1 else "there are"

    def holds(self, scene: Scene) -> bool:
        """Return whether both numbers are right."""
        forms = [shape.form for shape in scene]
        return all(forms.count(form) == count for count, form in (self.first, self.second))

    def fails(self, scene: Scene) -> bool:
        """Return whether one of the numbers is wrong."""
        return not self.holds(scene)


_KIND, _FORM = "|".join(KINDS), "|".join(FORMS)
_COUNT = rf"({'|'.join(NUMBERS)}) ({_FORM})s?"
_RELATION = re.compile(rf"a ({_KIND}) ({'|'.join(INVERSE)}) a ({_KIND})")
_BOTH = re.compile(rf"a ({_KIND}) and (a|no) ({_KIND})")
_COUNTS = re.compile(f"{_COUNT} and {_COUNT}")


def parse(caption: str) -> Statement | None:
    """Return the statement of a caption; None if the caption has another form, such as shuffled words."""
    phrase = caption.removeprefix("there is ").removeprefix("there are ")
    if match := _RELATION.fullmatch(phrase):
        return Relation(*match.groups())
    if match := _BOTH.fullmatch(phrase):
        first, article, second = match.groups()
        return Both(first, second) if article == "a" else Without(first, second)
    if match := _COUNTS.fullmatch(phrase):
        count, form, other_count, other = match.groups()
        return Counts((NUMBERS.index(count), form), (NUMBERS.index(other_count), other))
    return None
