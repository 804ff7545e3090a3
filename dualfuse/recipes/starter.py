"""A dual encoder over two frozen encoders that pip installs, trained on your pairs in minutes."""

from __future__ import annotations

from dualfuse.convert.formats.packaged import IMAGE_SIZE, PREPROCESS
from dualfuse.convert.packages import STARTER
from dualfuse.data.image.transform import Augment
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.models.dual_encoder import DualEncoderConfig
from dualfuse.models.towers.bert import BertConfig
from dualfuse.models.towers.efficientnet_lite import EfficientNetLiteConfig
from dualfuse.recipe import Data, Optim, Recipe, Run, Towers, TowerTraining
from dualfuse.tasks.pretrain.pairs import PairsConfig

MODEL = DualEncoderConfig(
    image=EfficientNetLiteConfig(image_size=IMAGE_SIZE, pooled_layers=2),
    text=BertConfig(width=384, depth=6, heads=12, feed_forward=1536),
)
"""EfficientNet-Lite0, of which the means of the last two maps are read, and MiniLM-L6."""
HEAD = ITCHeadConfig(width=512, hidden=1024, dropout=0.3, layer_norm=True, bias=True)
TASK = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal", itc_head=HEAD)
VIEWS = 6
"""Augmented views of each image: towers run once on each, which takes most of the time."""


def starter(validation: str = "") -> Recipe:
    """Dual encoder over EfficientNet-Lite0 and MiniLM, in minutes; needs --data.train and the extra starter.

    The towers stay frozen and run once; only the projections are trained.
    """
    data = Data(
        image_size=MODEL.image.image_size,
        preprocess=PREPROCESS,
        augment=Augment(crop=(0.6, 1.0), rand_augment=False, color_jitter=0.2),
        text_length=40,
        batch_size=256,
        num_workers=1,
    )
    frozen = TowerTraining("frozen")
    return Recipe(
        name="starter",
        model=MODEL,
        task=TASK,
        data=data,
        optim=Optim(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, warmup=0.05, schedule="cosine"),
        run=Run(
            epochs=16,
            eval_epochs=4,
            best="*/R@*" if validation else "",
            early_stopping=2 if validation else 0,
            save_every=1000,
        ),
        start_from=STARTER,
        towers=Towers(frozen, frozen, views=VIEWS),
    )
