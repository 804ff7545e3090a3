"""Vision-language models that work both ways: as a dual encoder and as a fusion encoder.

The names below are the public ones; each is imported when it is first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualfuse.convert.load import load
    from dualfuse.data.shards.shards import Shards
    from dualfuse.evaluation.retrieval import Plan, evaluate_retrieval
    from dualfuse.hub import LoadedModel
    from dualfuse.inference.explain import explain
    from dualfuse.inference.predict import predict
    from dualfuse.models.bridgetower import BridgeTowerConfig
    from dualfuse.models.towers.clip_vit import CLIPViTConfig
    from dualfuse.models.towers.roberta import RobertaConfig
    from dualfuse.models.vlmo import VLMoConfig
    from dualfuse.recipe import Data, Optim, Recipe, Run
    from dualfuse.search.index import Index
    from dualfuse.tasks.pretrain.pairs import PairsConfig
    from dualfuse.training.loop import train

__version__ = "0.1.0"

_HOME = {
    "BridgeTowerConfig": "dualfuse.models.bridgetower",
    "Data": "dualfuse.recipe",
    "CLIPViTConfig": "dualfuse.models.towers.clip_vit",
    "Index": "dualfuse.search.index",
    "Loaded": "dualfuse.hub",
    "Optim": "dualfuse.recipe",
    "PairsConfig": "dualfuse.tasks.pretrain.pairs",
    "Plan": "dualfuse.evaluation.retrieval",
    "Recipe": "dualfuse.recipe",
    "Run": "dualfuse.recipe",
    "Shards": "dualfuse.data.shards.shards",
    "RobertaConfig": "dualfuse.models.towers.roberta",
    "VLMoConfig": "dualfuse.models.vlmo",
    "evaluate": "dualfuse.evaluation.retrieval",
    "explain": "dualfuse.inference.explain",
    "load": "dualfuse.convert.load",
    "predict": "dualfuse.inference.predict",
    "train": "dualfuse.training.loop",
}

__all__ = [
    "BridgeTowerConfig",
    "CLIPViTConfig",
    "Data",
    "Index",
    "LoadedModel",
    "Optim",
    "PairsConfig",
    "Plan",
    "Recipe",
    "RobertaConfig",
    "Run",
    "Shards",
    "VLMoConfig",
    "evaluate_retrieval",
    "explain",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Import a public name when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'dualfuse' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
