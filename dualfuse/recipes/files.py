"""Recipes as YAML and JSON files: whole recipes, or a base with the values that differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dualfuse import config, hub
from dualfuse.config import IS, JSON
from dualfuse.errors import DualfuseError, MissingExtraError
from dualfuse.files import read_bounded
from dualfuse.io import write_text
from dualfuse.recipe import Recipe

YAML = (".yaml", ".yml")
ENDINGS = (*YAML, ".json")
"""Endings of the names of recipe files."""
BASE = "recipe"
"""The key under which a file names the recipe that its other values change."""
MAX_FILE = 16 << 20
"""Bytes of a recipe file."""
FLOAT = r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+"
"""Numbers such as 1e-4, which YAML 1.1 takes for text."""


def is_recipe_file(name: str) -> bool:
    """Return whether ``name`` ends as the name of a recipe file does."""
    return Path(name).suffix.lower() in ENDINGS


def read_recipe_file(path: Path, base: Any = None) -> tuple[Recipe, ...]:  # Any: a function from a name to recipes
    """Return the recipes that a YAML or JSON file describes.

    Either form is accepted:

    - a whole recipe, or a list of them, as :func:`write_recipe_file` and model folders (config.json) have it;
    - ``recipe: NAME`` with changes in nested form (``optim: {lr: 1e-4}``); with several stages the changes are under
      the name of each. ``base`` returns the recipes of a name.

    A file may come from anywhere: it names classes of dualfuse and of plug-ins that were imported, and runs no code.
    Raises ``DualfuseError`` for unknown fields, with the nearest name, and for values that a field does not accept.
    """
    content = _read(path)
    try:
        if isinstance(content, dict) and BASE in content:
            return _changed(content, base)
        stages = content if isinstance(content, list) and content else [content]
        return tuple(hub.recipe_from_json(stage) for stage in stages)
    except (DualfuseError, RecursionError) as error:
        raise DualfuseError(f"{path}: {error}") from error


def write_recipe_file(recipes: tuple[Recipe, ...], path: Path) -> None:
    """Write whole recipes into a new YAML or JSON file; raises ``DualfuseError`` for another ending."""
    if not is_recipe_file(path.name):
        raise DualfuseError(f"{path} should end in {', '.join(ENDINGS)}")
    write_text(path, recipe_text(recipes, as_yaml=path.suffix.lower() in YAML))


def recipe_text(recipes: tuple[Recipe, ...], *, as_yaml: bool) -> str:
    """Return whole recipes as YAML or as JSON."""
    stages = [hub.recipe_to_json(recipe) for recipe in recipes]
    content = stages if len(stages) > 1 else stages[0]
    if not as_yaml:
        return json.dumps(content, indent=1) + "\n"
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):
        """Quotes texts that :func:`_read` would take for numbers, and writes short lists in one line."""

        def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:  # Any: of PyYAML
            is_short = not any(isinstance(item, dict | list) for item in sequence)
            return super().represent_sequence(tag, sequence, flow_style=is_short)

    _add_floats(Dumper)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> JSON:
    text = read_bounded(path, MAX_FILE)
    try:
        if path.suffix.lower() not in YAML:
            return json.loads(text)
        yaml = _yaml()
        return yaml.load(text, Loader=_loader(yaml))
    except MissingExtraError:
        raise
    except DualfuseError as error:
        raise DualfuseError(f"{path}: {error}") from error
    except Exception as error:  # of the parser: syntax, encoding, nesting
        raise DualfuseError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _loader(yaml: Any) -> Any:  # Any: the module, and a class of it
    class Loader(yaml.SafeLoader):
        """YAML's plain values; no aliases, which can stand for billions of values, and no key twice."""

        def compose_node(self, parent: Any, index: Any) -> Any:  # Any: of PyYAML
            if self.check_event(yaml.events.AliasEvent):
                raise DualfuseError("a recipe has no aliases (*name); repeat the value")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # Any: of PyYAML
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            for name in names:
                if names.count(name) > 1 or not isinstance(name, str):
                    raise DualfuseError(f"line {node.start_mark.line + 1}: {name!r} is given twice or is not a name")
            return super().construct_mapping(node, deep)

    _add_floats(Loader)
    return Loader


def _add_floats(kind: Any) -> None:  # Any: a loader or dumper of PyYAML
    kind.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^{FLOAT}$"), list("-+0123456789."))


def _yaml() -> Any:  # Any: the module yaml, which has no types
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("a recipe in YAML", "yaml") from error
    return yaml


def _changed(content: Mapping[str, JSON], base: Any) -> tuple[Recipe, ...]:
    name = content[BASE]
    if not isinstance(name, str) or is_recipe_file(name):
        raise DualfuseError(f"{BASE} is {name!r}; give the name of a listed recipe, or a model folder")
    if ":" in name and not config.is_trusted(Path(name.rpartition(":")[0]).stem):
        raise DualfuseError(f"{BASE} is {name!r}, which is code; if you trust it, import it with --import")
    recipes: tuple[Recipe, ...] = base(name)
    changes = {key: value for key, value in content.items() if key != BASE}
    if len(recipes) == 1:
        return (changed(recipes[0], changes),)
    config.check_names(changes, [recipe.name for recipe in recipes], "the recipes of this run")
    return tuple(changed(recipe, changes.get(recipe.name, {}), recipe.name) for recipe in recipes)


def changed(value: Any, changes: JSON, path: str = "") -> Any:  # Any: a config
    """Return a config with other values, given in nested form; ``path`` is its name in messages.

    A mapping changes the fields of a config; with the key "is" it is a config of its own. Raises ``DualfuseError``.
    """
    if not isinstance(changes, dict):
        raise DualfuseError(f"{path} is {changes!r:.100}; give values by the names of fields")
    config.check_names(changes, [field.name for field in fields(value)], path or type(value).__name__)
    return replace(value, **{name: _value(value, name, new, path) for name, new in changes.items()})


def _value(owner: Any, name: str, new: JSON, path: str) -> Any:  # Any: a config, a value of one
    current, place = getattr(owner, name), f"{path}.{name}".lstrip(".")
    if isinstance(new, dict) and IS not in new:
        if not is_dataclass(current):
            kind = config.dataclass_of(type(owner), name)
            if kind is None:
                raise DualfuseError(f"{place} takes a value, not fields ({', '.join(new)})")
            current = kind()
        return changed(current, new, place)
    if is_dataclass(current) and not isinstance(new, dict) and new is not None:
        raise DualfuseError(f"{place} is {new!r:.100}; give values by the names of its fields")
    return config.from_json(new)
