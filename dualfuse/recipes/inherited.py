"""What a run inherits from the model folder that it is started with: the values of its recipe beside the model's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from dualfuse.printable import brief
from dualfuse.recipe import Recipe

PARTS = ("data", "task", "optim", "run")
OWN = ("data.train", "data.weights", "data.validation", "data.tokenizer")
"""Values that are not inherited, or that the model determines."""
LONGEST = 60
"""Characters of a value."""


def inherited(folder: Recipe, chosen: Recipe) -> list[str]:
    """Return lines of the values that ``chosen`` has from the recipe of a model folder and that are not defaults.

    One line for each part of a recipe, and one for the frozen parameters with the flag that trains all.
    """
    lines: list[str] = []
    for part in PARTS:
        values = dict(_values(getattr(folder, part), part))
        same = dict(_values(getattr(chosen, part), part))
        kept = [f"{name.partition('.')[2]} {_text(value)}" for name, value in values.items() if same.get(name) == value]
        if kept:
            lines.append(f"  {part}: {', '.join(kept)}")
    if chosen.train_only and chosen.train_only == folder.train_only:
        lines.append(
            f"  train_only: {_text(chosen.train_only)}; all other parameters stay frozen, --train-only without a value "
            "trains all"
        )
    return lines


def _values(config: Any, path: str) -> Iterator[tuple[str, Any]]:  # Any: a config and its values
    """Yield the values that differ from the defaults, by their dotted names."""
    for field in fields(config):
        name, value, default = f"{path}.{field.name}", getattr(config, field.name), _default(field)
        if name in OWN or value == default:
            continue
        if is_dataclass(value) and type(value) is type(default):
            yield from ((inner, each) for inner, each in _values(value, name))
        else:
            yield name, value


def _default(field: Field[Any]) -> Any:  # Any: of whatever type the field has
    return field.default if field.default_factory is MISSING else field.default_factory()


def _text(value: Any) -> str:  # Any: a value of a config
    items = value if isinstance(value, tuple) else (value,)
    return brief(" ".join(type(item).__name__ if is_dataclass(item) else str(item) for item in items), LONGEST)
