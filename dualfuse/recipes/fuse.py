"""A fusion encoder on top of the frozen towers of a model that is there already: CLIP, SigLIP, a BridgeTower."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dualfuse import hub
from dualfuse.convert.load import is_model_folder, locate, read_checkpoint
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.base import ImageTowerConfig, TextTowerConfig
from dualfuse.models.towers.clip_text import CLIPTextConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.recipe import Data, Optim, Recipe, Run, Towers, TowerTraining
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

WIDTH, LAYERS = 256, 2
"""Sizes of the fusion encoder: 3 million parameters and some for the projections of the towers' states."""
FROZEN = Towers(TowerTraining("frozen"), TowerTraining("frozen"))
OPTIM = Optim(lr=1e-3, weight_decay=0.05, warmup=0.1, schedule="cosine", grad_clip_norm=1.0)
TRAINED = ("[!i]*", "itm_head.*")
"""All but itc_heads, the projections and the logit scale of the dual encoder; towers are frozen by their mode."""


@dataclass(frozen=True)
class _Start:
    """What a fusion encoder takes over from the model that it is added to."""

    image: ImageTowerConfig
    text: TextTowerConfig
    itc_head: ITCHeadConfig
    data: Data
    fused: BridgeTowerConfig | None = None
    """The whole model, if it has a fusion encoder that tasks can start from."""


def fuse(start_from: str = "", validation: str = "") -> Recipe:
    """Fusion encoder on any dual encoder, in minutes; needs --start-from MODEL and --data.train.

    Search stays exactly as it is; re-ranking, matching and explaining are added.
    """
    start = _read(start_from)
    task = PairsConfig(
        itc_features="unimodal",
        itc_head=start.itc_head,
        itm_loss="listwise",
        mlm_weight=0.0,
        negative_hardness=0.5,
    )
    best = "*/reranked/R@*" if validation else ""
    patience = 3 if validation else 0
    run = Run(epochs=8, eval_epochs=1, eval_rerank=16, best=best, early_stopping=patience, save_every=500)
    return Recipe("fuse", _model(start), task, start.data, OPTIM, run, start_from, train_only=TRAINED, towers=FROZEN)


def vqa(start_from: str = "", validation: str = "") -> Recipe:
    """Question answering on any dual encoder, in minutes; needs --start-from, --data.train and --task.answers."""
    return _finetune("vqa", VQAConfig(), start_from, validation)


def entailment(start_from: str = "", validation: str = "") -> Recipe:
    """Labels of an image with a text on any dual encoder, in minutes; needs --start-from and --data.train.

    The labels are those of SNLI-VE; set --task.labels for labels of your own.
    """
    return _finetune("entailment", EntailmentConfig(), start_from, validation)


def nlvr2(start_from: str = "", validation: str = "") -> Recipe:
    """A text about two images on any dual encoder, in minutes; needs --start-from and --data.train."""
    recipe = _finetune("nlvr2", NLVR2Config(), start_from, validation)
    assert isinstance(recipe.model, BridgeTowerConfig)  # of every _finetune
    return replace(recipe, model=replace(recipe.model, image_slots=2))


def _finetune(name: str, task: TaskConfig, start_from: str, validation: str) -> Recipe:
    start = _read(start_from)
    data = replace(start.data, batch_size=64)
    best, patience = ("accuracy", 3) if validation else ("", 0)
    run = Run(epochs=10, eval_epochs=1, best=best, early_stopping=patience, save_every=500)
    return Recipe(name, start.fused or _model(start), task, data, OPTIM, run, start_from, towers=FROZEN)


def _model(start: _Start) -> BridgeTowerConfig:
    return BridgeTowerConfig(
        image=start.image,
        text=start.text,
        width=WIDTH,
        heads=4,
        feed_forward=4 * WIDTH,
        layers=min(LAYERS, start.image.depth, start.text.depth),
        layer_norm_eps=1e-5,
        init_std=WIDTH**-0.5,
    )


def _read(start_from: str) -> _Start:
    """Return the towers, ITC head and preprocessing of a model; of CLIP ViT-B/32 if none is given.

    Raises ``DualfuseError`` for a model that is not made of two towers.
    """
    if not start_from:
        image = CLIPViTConfig(patch_size=32, image_size=(224, 224))
        return _Start(image, CLIPTextConfig(), ITCHeadConfig(width=512), _data(Data(text_length=77)))
    path = locate(start_from)
    recipe = hub.with_tokenizer(hub.read_recipe(path), path) if is_model_folder(path) else read_checkpoint(path).recipe
    model, task = recipe.model, recipe.task
    image, text = getattr(model, "image", None), getattr(model, "text", None)  # any model of two towers has them
    if not isinstance(image, ImageTowerConfig) or not isinstance(text, TextTowerConfig):
        raise DualfuseError(
            f"{start_from} is a {type(model).__name__} without two towers; a fusion encoder is added to a dual encoder "
            "(CLIP, SigLIP) or to the towers of a BridgeTower"
        )
    if isinstance(model, BridgeTowerConfig) and model.itc_image_feature == "transformed":
        raise DualfuseError(
            f"{start_from} compares images after a transform that belongs to its fusion encoder, so another one would "
            "change its search; train it further as it is: dualfuse train MODEL --data.train SHARDS"
        )
    fused = model if isinstance(model, BridgeTowerConfig) else None
    head = task.itc_head if isinstance(task, PairsConfig) and task.itc_weight else None
    return _Start(image, text, head or ITCHeadConfig(width=WIDTH), _data(recipe.data), fused)


def _data(data: Data) -> Data:
    """Return data settings with the preprocessing of a model, without augmentation, so that states can be stored."""
    return replace(data, train=(), weights=(), validation="", augment=None, batch_size=128, num_workers=1)
