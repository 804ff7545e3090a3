"""Recipes for a laptop: small models, the demo, and the ten-second run of the tests."""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import Augment
from dualfuse.models.base import ModelConfig
from dualfuse.models.bridgetower import BridgeTowerConfig
from dualfuse.models.towers.clip_vit import CLIPViTConfig
from dualfuse.models.towers.roberta import RobertaConfig
from dualfuse.models.vlmo import InitConfig, VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.pretrain.pairs import PairsConfig

NANO = VLMoConfig(
    width=64,
    depth=4,
    heads=2,
    vl_expert_start=2,
    image_size=(64, 64),
    text_length=16,
    positions="absolute",
    init=InitConfig(std=0.125, layer_scale=0.0),
    drop_path=0.0,
    stem="convolution",
)
"""4 layers of width 64 for images of 64 px: half a million parameters without the token embedding."""

SMALL = VLMoConfig(width=384, depth=12, heads=6, vl_expert_start=10, image_size=(224, 224), positions="absolute")
"""12 layers of width 384 for images of 224 px: a day on one GPU."""

BRIDGETOWER_NANO = BridgeTowerConfig(
    image=CLIPViTConfig(width=64, depth=2, image_size=(64, 64), stem="convolution"),
    text=RobertaConfig(
        width=64, depth=2, heads=2, feed_forward=256, vocab_size=NANO.vocab_size, text_length=16, pad_id=0
    ),
    width=64,
    heads=2,
    feed_forward=128,
    layers=2,
    dropout=0.0,
    init_std=0.125,
)
"""Two towers of 2 layers and 2 cross-modal layers of width 64: as many parameters as VLMo-nano."""

METER_NANO = replace(BRIDGETOWER_NANO, bridge="none")
"""BridgeTower-nano without bridges."""

OPENPICS = Data(
    train=("examples/openpics-mini/*-train-*.tar",),
    validation="examples/openpics-mini/*-val-*.tar",
    image_size=(64, 64),
    augment=Augment(crop=(0.5, 1.0), rand_augment=False, color_jitter=0.2),
    text_length=16,
    batch_size=128,
    num_workers=1,
)
"""3,000 captioned images of the repository, listed in examples/openpics-mini/ATTRIBUTION.txt."""

QUICK = Optim(lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05, warmup=100, schedule="cosine", grad_clip_norm=1.0)
"""Ten times the learning rate of the paper, for a narrow model and a short run."""


def nano_pairs(validation: str = "") -> Recipe[ModelConfig, PairsConfig]:
    """VLMo-nano pre-training on your pairs, minutes on a laptop; needs --data.train.

    With --data.validation the best model is kept, and the run ends once four evaluations were not better.
    """
    run = Run(steps=3000, save_every=500)
    if validation:
        run = replace(run, eval_every=250, best="*/R@*", early_stopping=4)
    return Recipe(
        name="pairs",
        model=NANO,
        task=PairsConfig(
            itc_features="unimodal",
            itm_on_masked_text=True,
            negatives_per_pair=1,
            negative_hardness=0.0,
            init_std=NANO.init.std,
        ),
        data=replace(OPENPICS, train=(), validation=""),
        optim=QUICK,
        run=run,
    )


def bridgetower_nano_pairs(validation: str = "") -> Recipe[ModelConfig, PairsConfig]:
    """BridgeTower-nano pre-training on your pairs, minutes on a laptop; needs --data.train.

    With --data.validation the best model is kept, and the run ends once four evaluations were not better.
    """
    return replace(nano_pairs(validation), model=BRIDGETOWER_NANO)


def meter_nano_pairs(validation: str = "") -> Recipe[ModelConfig, PairsConfig]:
    """METER-nano pre-training on your pairs, minutes on a laptop; needs --data.train.

    With --data.validation the best model is kept, and the run ends once four evaluations were not better.
    """
    return replace(nano_pairs(validation), model=METER_NANO)


def small_pairs() -> Recipe:
    """VLMo-small pre-training on your pairs, a day on one GPU; needs --data.train."""
    return Recipe(
        name="pairs",
        model=SMALL,
        task=PairsConfig(),
        data=Data(batch_size=512, num_workers=8),
        optim=Optim(lr=5e-4, weight_decay=0.05, warmup=2000, schedule="cosine", grad_clip_norm=1.0),
        run=Run(steps=100_000, precision="bf16", save_every=1000, log_every=50),
    )


def demo() -> tuple[Recipe, ...]:
    """The demo: ITC first, then ITC, ITM and MLM, on the images of the repository."""
    return _demo(nano_pairs())


def demo_bridgetower() -> tuple[Recipe, ...]:
    """The demo with BridgeTower-nano in place of VLMo-nano."""
    return _demo(bridgetower_nano_pairs())


def demo_meter() -> tuple[Recipe, ...]:
    """The demo with METER-nano in place of VLMo-nano."""
    return _demo(meter_nano_pairs())


def _demo(nano: Recipe[ModelConfig, PairsConfig]) -> tuple[Recipe[ModelConfig, PairsConfig], ...]:
    task = replace(nano.task, tags="keywords")
    itc = replace(
        nano,
        name="itc",
        task=replace(task, itm_weight=0.0, mlm_weight=0.0),
        data=OPENPICS,
        run=Run(steps=1200, eval_every=200, save_every=400),
    )
    joint = replace(
        nano,
        task=task,
        data=OPENPICS,
        optim=replace(QUICK, lr=1e-3),
        run=Run(steps=500, eval_every=125, eval_rerank=16, save_every=250),
        start_from=itc.name,
    )
    return itc, joint


def demo_itc() -> tuple[Recipe, ...]:
    """The control of the demo: ITC alone for the same time."""
    itc, joint = _demo(nano_pairs())
    run = replace(itc.run, steps=1450, eval_every=290)
    return itc, replace(itc, name="itc-only", optim=joint.optim, run=run, start_from=itc.name)


def ten_seconds() -> Recipe:
    """A run of ten seconds on the data of the demo, for tests and for a first try."""
    return replace(
        nano_pairs(),
        name="ten-seconds",
        model=replace(NANO, width=32, depth=2, vl_expert_start=1, image_size=(32, 32)),
        data=replace(OPENPICS, image_size=(32, 32), batch_size=16, num_workers=0),
        run=Run(steps=30, save_every=10, log_every=10),
    )
