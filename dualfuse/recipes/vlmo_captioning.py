"""VLMo fine-tuning for captioning: on COCO as BEiT-3, and on a laptop.

VLMo's paper leaves captioning to future work. Values are from BEiT-3's fine-tuning on COCO (microsoft/unilm, beit3:
get_started_for_captioning.md, run_beit3_finetuning.py), which after 12,000 steps also drops the fifth of the masked
tokens with the highest loss; this is not done here. As there, the captions of --data.validation are scored after every
epoch, and the best model by CIDEr is kept; an epoch has every caption once.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.small_pairs import NANO, OPENPICS, QUICK
from dualfuse.recipes.vlmo import BASE, LARGE
from dualfuse.tasks.finetune.captioning import CaptioningConfig

CAPTIONS = 566_747
"""Captions of the 113,287 images of Karpathy's COCO training split; BEiT-3 counts each as a sample."""


NANO_CAPTIONS = Recipe(
    name="captions",
    model=NANO,
    task=CaptioningConfig(init_std=NANO.init.std),
    data=OPENPICS,
    optim=replace(QUICK, warmup=0.1),
    run=Run(steps=1000, eval_every=250, save_every=500),
)


def _coco(model: VLMoConfig, *, lr: float) -> Recipe:
    data = Data(sample_by="caption", image_size=(480, 480), text_length=32, batch_size=256, num_workers=8)
    steps, epoch = 10 * CAPTIONS // data.batch_size, CAPTIONS // data.batch_size
    run = Run(steps=steps, epochs=10, eval_every=epoch, eval_epochs=1, best="CIDEr-D", precision="bf16")
    return Recipe(
        name="captions",
        model=replace(model, image_size=data.image_size, drop_path=0.1),
        task=CaptioningConfig(),
        data=data,
        optim=Optim(
            lr=lr, betas=(0.9, 0.999), weight_decay=0.05, decay_rule="beit", warmup=0.1, schedule="cosine", min_lr=1e-6
        ),
        run=replace(run, save_every=1000, log_every=50, activation_checkpointing=True),
    )


def _listed(prefix: str, data: str, size: str, lr: float) -> tuple[str, tuple[str, Recipe]]:
    settings = f"BEiT-3-{size.capitalize()}{' for NoCaps' if prefix == 'nocaps' else ''}"
    summary = f"VLMo-{size.capitalize()} captioning {data} at 480 px, 10 epochs, with the settings of {settings}."
    return f"{prefix}-vlmo-{size}", (summary, _coco(BASE if size == "base" else LARGE, lr=lr))


RECIPES = dict(
    (
        _listed("caption", "on COCO", "base", 4e-5),
        _listed("caption", "on COCO", "large", 8e-6),
        _listed("nocaps", "for NoCaps, trained on COCO", "base", 1e-5),
        _listed("nocaps", "for NoCaps, trained on COCO", "large", 8e-6),
    )
) | {
    "vlmo-nano-captions": (
        "VLMo-nano captioning on the images of the demo, minutes on a laptop; set --start-from to a model of the demo.",
        NANO_CAPTIONS,
    ),
}
"""Summary and recipe by name."""
