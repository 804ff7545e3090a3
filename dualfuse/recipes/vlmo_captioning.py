"""VLMo fine-tuned to write captions: as BEiT-3 was, whose command is published, and on a laptop.

VLMo's paper names captioning as future work. Numbers are those of BEiT-3's fine-tuning on COCO (microsoft/unilm, beit3:
get_started_for_captioning.md, run_beit3_finetuning.py). It also leaves the worst fifth of the masked words out of the
loss after 12,000 steps; that is not done here.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, OPENPICS, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.tasks.finetune.captioning import CaptioningConfig

CAPTIONS = 566_747
"""Of the 113,287 images of Karpathy's training split of COCO; BEiT-3 counts each as a sample."""


def base() -> Recipe:
    """VLMo-Base writes captions of COCO, images of 480 pixels, 10 epochs of all captions, as BEiT-3-Base."""
    return _coco(BASE, lr=4e-5)


def large() -> Recipe:
    """VLMo-Large writes captions of COCO, images of 480 pixels, 10 epochs of all captions, as BEiT-3-Large."""
    return _coco(LARGE, lr=8e-6)


def nano() -> Recipe:
    """VLMo-nano names the demo's images: give --start-from a model of vlmo-nano-pairs or of the demo; minutes."""
    return Recipe(
        name="captions",
        model=NANO,
        task=CaptioningConfig(init_std=NANO.init.std),
        data=OPENPICS,
        optim=replace(QUICK, warmup=0.1),
        run=Run(steps=1000, eval_every=250, save_every=500),
    )


def _coco(model: VLMoConfig, *, lr: float) -> Recipe:
    data = Data(image_size=(480, 480), text_length=32, batch_size=256, num_workers=8)
    steps = 10 * CAPTIONS // data.batch_size
    return Recipe(
        name="captions",
        model=replace(model, image_size=data.image_size, drop_path=0.1),
        task=CaptioningConfig(),
        data=data,
        optim=Optim(
            lr=lr, betas=(0.9, 0.999), weight_decay=0.05, decay_rule="beit", warmup=0.1, schedule="cosine", min_lr=1e-6
        ),
        run=Run(steps=steps, precision="bf16", save_every=1000, log_every=50, activation_checkpointing=True),
    )
