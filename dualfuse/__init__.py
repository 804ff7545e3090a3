"""Train, evaluate and serve vision-language models that work as dual encoders and as fusion encoders.

The names imported below are the public ones. Each is loaded at its first use, so that importing the package is quick.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dualfuse.convert.convert import convert as convert_checkpoint  # noqa: F401
    from dualfuse.convert.load import load as load
    from dualfuse.data.processor import Processor as Processor
    from dualfuse.data.sample import Sample as Sample
    from dualfuse.data.shards.shards import Shards as Shards
    from dualfuse.errors import DualfuseError as DualfuseError
    from dualfuse.evaluation.runner import Plan as Plan
    from dualfuse.evaluation.runner import evaluate as evaluate
    from dualfuse.hub import LoadedModel as LoadedModel
    from dualfuse.hub import save as save
    from dualfuse.inference.explain import explain as explain
    from dualfuse.inference.predict import predict as predict
    from dualfuse.models.base import ModelConfig as ModelConfig
    from dualfuse.models.base import Tokens as Tokens
    from dualfuse.models.base import VisionLanguageModel as VisionLanguageModel
    from dualfuse.models.bridgetower import BridgeTowerConfig as BridgeTowerConfig
    from dualfuse.models.dual_encoder import DualEncoderConfig as DualEncoderConfig
    from dualfuse.models.towers.clip_text import CLIPTextConfig as CLIPTextConfig
    from dualfuse.models.towers.clip_vit import CLIPViTConfig as CLIPViTConfig
    from dualfuse.models.towers.roberta import RobertaConfig as RobertaConfig
    from dualfuse.models.towers.siglip import SiglipTextConfig as SiglipTextConfig
    from dualfuse.models.towers.siglip import SiglipViTConfig as SiglipViTConfig
    from dualfuse.models.vlmo import VLMoConfig as VLMoConfig
    from dualfuse.prepare.options import PrepareOptions as PrepareOptions
    from dualfuse.prepare.pipeline import prepare as prepare_data  # noqa: F401
    from dualfuse.prepare.shard_writer import write_shards as write_shards
    from dualfuse.recipe import Data as Data
    from dualfuse.recipe import Optim as Optim
    from dualfuse.recipe import Recipe as Recipe
    from dualfuse.recipe import Run as Run
    from dualfuse.recipes import find_recipe as find_recipe
    from dualfuse.search.client import Client as Client
    from dualfuse.search.client import ImageId as ImageId
    from dualfuse.search.index import Index as Index
    from dualfuse.tasks.base import Task as Task
    from dualfuse.tasks.base import TaskConfig as TaskConfig
    from dualfuse.tasks.base import TaskOutput as TaskOutput
    from dualfuse.tasks.pretrain.pairs import PairsConfig as PairsConfig
    from dualfuse.training.loop import train as train


@cache
def _exports() -> dict[str, tuple[str, str]]:
    """Return the module and the name there of each public name, read from the imports above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (node.module or "", alias.name) for node in imports for alias in node.names}


def __getattr__(name: str) -> Any:  # Any: whatever the name stands for
    """Load a public name at its first use."""
    if name == "__all__":
        return sorted(_exports())
    if name.startswith("_") or name not in _exports():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = _exports()[name]
    value = globals()[name] = getattr(importlib.import_module(module), original)
    return value


def __dir__() -> list[str]:
    """Return the public names besides those that are loaded."""
    return sorted({*globals(), *_exports()})
