"""Configs survive JSON, and files of unknown origin build nothing but configs."""

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
def test_every_recipe_survives_json(name: str) -> None:
    for recipe in recipes.find_recipe(name):
        back = from_json(json.loads(json.dumps(to_json(recipe))))
        assert back == recipe and repr(back) == repr(recipe)
        assert back != replace(recipe, optim=replace(recipe.optim, lr=0.123))


def test_json_holds_the_address_of_each_class() -> None:
    data = to_json(Optim(lr=0.5))
    assert isinstance(data, dict)
    assert (data["is"], data["lr"], data["betas"]) == ("dualfuse.recipe:Optim", 0.5, [0.9, 0.98])
    assert from_json({"is": "dualfuse.recipe:Optim", "lr": 0.5}) == Optim(lr=0.5)  # missing fields take their defaults


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
    """Start without trusted modules."""
    monkeypatch.setattr(config, "_trusted", set())


@pytest.mark.parametrize("named", [Mine, Mine(), (1, (Outer(),))], ids=["class", "value", "inside"])
@pytest.mark.usefixtures("untrusting")
def test_third_party_configs_need_trust(named: object) -> None:
    data = json.loads(json.dumps(to_json(Mine())))
    with pytest.raises(ValueError, match=rf"--import {__name__.partition('.')[0]}"):
        from_json(data)
    trust(named)
    assert from_json(data) == Mine()


@dataclass(frozen=True)
class Square:
    """A config whose validation meets values of any type."""

    size: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.size[0] != self.size[1]:
            raise ValueError("not a square")


@pytest.mark.parametrize("size", [3, None, [], "x", {"is": "dualfuse.recipe:Data"}])
@pytest.mark.usefixtures("untrusting")
def test_values_of_the_wrong_type_are_refused(size: object) -> None:
    trust(Square)
    with pytest.raises(ValueError, match="Square cannot be made of size: "):
        from_json({"is": f"{__name__}:Square", "size": size})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [{"a": 1}, [1], {1}, b"x", lambda: 1, Data])
def test_values_without_a_json_form_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"a config holds .*; only dataclasses, tuples, numbers"):
        to_json(Mine(sizes=value))  # type: ignore[arg-type]


def test_classes_that_no_reader_could_find_are_refused() -> None:
    @dataclass(frozen=True)
    class Local:
        pass

    for value in (Local(), Changing()):
        with pytest.raises(ValueError, match="at the top of a module"):
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
        "dualfuse.training.loop:TrainState",
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
def test_hostile_addresses_are_refused(name: object) -> None:
    for data in ({"is": name}, {"is": "dualfuse.recipe:Data", "train": [{"is": name, "args": ["ls"]}]}):
        with pytest.raises(ValueError, match=r'"is": .* names no frozen dataclass of dualfuse'):
            from_json(data)  # type: ignore[arg-type]


def test_files_import_no_third_party_module() -> None:
    """Modules of the standard library stay unimported too."""
    code = (
        "import sys\nfrom dualfuse.config import from_json\nfor name in ('this:d', 'dualfuse.__main__:main'):\n"
        "    try:\n        from_json({'is': name})\n    except ValueError:\n        pass\n"
        "    assert name.partition(':')[0] not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_and_missing_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"Optim has no field momentum, speed; it has adamw, .*another version"):
        from_json({"is": "dualfuse.recipe:Optim", "lr": 1, "speed": 2, "momentum": 3})
    with pytest.raises(ValueError, match=r"Recipe cannot be made of name: .*missing 2 required.*model"):
        from_json({"is": "dualfuse.recipe:Recipe", "name": "x"})
    with pytest.raises(ValueError, match="names no frozen dataclass"):
        from_json({"lr": 1})
