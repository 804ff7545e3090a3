"""Vision-language models that work both ways: as a dual encoder and as a fusion encoder.

The names below are the public ones; each is imported when it is first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualfuse.convert.load import load
    from dualfuse.data.shards import Shards
    from dualfuse.engine.evaluate import Plan, evaluate
    from dualfuse.engine.train import train
    from dualfuse.hub import Loaded
    from dualfuse.models.bridgetower import BridgeTowerConfig
    from dualfuse.models.towers import ImageTowerConfig, TextTowerConfig
    from dualfuse.models.vlmo import VLMoConfig
    from dualfuse.recipe import Data, Optim, Recipe, Run
    from dualfuse.search.index import Index
    from dualfuse.tasks.pairs import PairsConfig
    from dualfuse.use.explain import explain
    from dualfuse.use.predict import predict

__version__ = "0.1.0"

_HOME = {
    "BridgeTowerConfig": "dualfuse.models.bridgetower",
    "Data": "dualfuse.recipe",
    "ImageTowerConfig": "dualfuse.models.towers",
    "Index": "dualfuse.search.index",
    "Loaded": "dualfuse.hub",
    "Optim": "dualfuse.recipe",
    "PairsConfig": "dualfuse.tasks.pairs",
    "Plan": "dualfuse.engine.evaluate",
    "Recipe": "dualfuse.recipe",
    "Run": "dualfuse.recipe",
    "Shards": "dualfuse.data.shards",
    "TextTowerConfig": "dualfuse.models.towers",
    "VLMoConfig": "dualfuse.models.vlmo",
    "evaluate": "dualfuse.engine.evaluate",
    "explain": "dualfuse.use.explain",
    "load": "dualfuse.convert.load",
    "predict": "dualfuse.use.predict",
    "train": "dualfuse.engine.train",
}

__all__ = [
    "BridgeTowerConfig",
    "Data",
    "ImageTowerConfig",
    "Index",
    "Loaded",
    "Optim",
    "PairsConfig",
    "Plan",
    "Recipe",
    "Run",
    "Shards",
    "TextTowerConfig",
    "VLMoConfig",
    "evaluate",
    "explain",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Imports a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'dualfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
