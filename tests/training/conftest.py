"""A tiny recipe, and the run of it that nothing stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import recipe

from dualfuse.recipe import Recipe
from dualfuse.training import loop


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def whole(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    loop.train((tiny,), out)
    return out
