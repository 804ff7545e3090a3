"""A config comes back from JSON as it was, and a file from anywhere builds nothing but configs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from dualfuse import config, recipes
from dualfuse.config import from_json, to_json, trust
from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_comes_back(name: str) -> None:
    for recipe in recipes.find(name):
        back = from_json(json.loads(json.dumps(to_json(recipe))))
        assert back == recipe and repr(back) == repr(recipe)
        assert back != replace(recipe, optim=replace(recipe.optim, lr=0.123))


def test_the_json_says_what_things_are() -> None:
    said = to_json(Optim(lr=0.5))
    assert isinstance(said, dict)
    assert (said["is"], said["lr"], said["betas"]) == ("dualfuse.recipe:Optim", 0.5, [0.9, 0.98])
    assert from_json({"is": "dualfuse.recipe:Optim", "lr": 0.5}) == Optim(lr=0.5)  # fields that came later


@dataclass(frozen=True)
class Mine:
    sizes: tuple[tuple[int, ...], ...] = ((1, 2), (), (3,))
    model: VLMoConfig = field(default_factory=lambda: VLMoConfig(depth=3))
    nothing: None = None
    is_odd: bool = True
    share: float = float("inf")


@dataclass
class Changing:
    value: int = 0


@dataclass(frozen=True)
class Outer:
    inside: tuple[Mine, ...] = (Mine(),)


@pytest.fixture
def untrusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was trusted before."""
    monkeypatch.setattr(config, "_trusted", set())


@pytest.mark.parametrize("named", [Mine, Mine(), (1, (Outer(),))], ids=["class", "value", "inside"])
@pytest.mark.usefixtures("untrusting")
def test_configs_of_others_are_named_by_the_caller(named: object) -> None:
    data = json.loads(json.dumps(to_json(Mine())))
    with pytest.raises(ValueError, match=r"or of a module that was trusted; .* call dualfuse\.config\.trust"):
        from_json(data)
    trust(named)
    assert from_json(data) == Mine()


@dataclass(frozen=True)
class Looking:
    """Looks into a value that may be of any type."""

    size: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.size[0] != self.size[1]:
            raise ValueError("no square")


@pytest.mark.parametrize("size", [3, None, [], "x", {"is": "dualfuse.recipe:Data"}])
@pytest.mark.usefixtures("untrusting")
def test_values_of_another_type(size: object) -> None:
    trust(Looking)
    with pytest.raises(ValueError, match="Looking cannot be made of size: "):
        from_json({"is": f"{__name__}:Looking", "size": size})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [{"a": 1}, [1], {1}, b"x", lambda: 1, Data])
def test_what_is_no_config_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match=r"a config holds .*; only dataclasses, tuples, numbers"):
        to_json(Mine(sizes=value))  # type: ignore[arg-type]


def test_a_config_that_no_reader_would_find_is_not_written() -> None:
    @dataclass(frozen=True)
    class Local:
        pass

    for value in (Local(), Changing()):
        with pytest.raises(ValueError, match=r"names no frozen dataclass .* define it at the top of a module"):
            to_json(value)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "dualfuse.recipe:field",
        "dualfuse.recipe:nothing",
        "dualfuse.nothing:Recipe",
        "dualfuse.__main__:main",
        "dualfuse..recipe:Recipe",
        "dualfusion.recipe:Recipe",
        "antigravity:x",
        "dualfuse.training.loop:State",
        "dualfuse.recipes:os",
        "dualfuse.recipes:Path",
        "dualfuse.recipes:Recipe",  # defined elsewhere
        "dualfuse.recipe:Recipe.name",
        "dualfuse.recipe:os:system",
        "dualfuse:Recipe",
        "dualfuse.\0:Recipe",
        "dualfuse.recipe\n:Recipe",
        "dualfuse/recipe:Recipe",
        "dualfuse.models:vlmo",
        "tyro.conf._confstruct:_ArgConfig",  # a frozen dataclass of a module that is imported
        "__main__:Recipe",
        "Recipe",
        "",
        None,
        7,
        ["dualfuse.recipe:Data"],
    ],
)
@pytest.mark.usefixtures("untrusting")
def test_a_hostile_name_is_refused(name: object) -> None:
    for data in ({"is": name}, {"is": "dualfuse.recipe:Data", "train": [{"is": name, "args": ["ls"]}]}):
        with pytest.raises(ValueError, match=r'"is": .* names no frozen dataclass of dualfuse'):
            from_json(data)  # type: ignore[arg-type]


def test_nothing_foreign_is_imported_for_a_file() -> None:
    """Not even where it could be: a module of the standard library that was not imported stays so."""
    code = (
        "import sys\nfrom dualfuse.config import from_json\nfor name in ('this:d', 'dualfuse.__main__:main'):\n"
        "    try:\n        from_json({'is': name})\n    except ValueError:\n        pass\n"
        "    assert name.partition(':')[0] not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fields_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"Optim has no field momentum, speed; it has adamw, .*another version"):
        from_json({"is": "dualfuse.recipe:Optim", "lr": 1, "speed": 2, "momentum": 3})
    with pytest.raises(ValueError, match=r"Recipe cannot be made of name: .*missing 2 required.*model"):
        from_json({"is": "dualfuse.recipe:Recipe", "name": "x"})
    with pytest.raises(ValueError, match="names no frozen dataclass"):
        from_json({"lr": 1})
