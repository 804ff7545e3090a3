"""VLMo fine-tuning as published: VQAv2, NLVR2, and retrieval on COCO and Flickr30k, at all sizes and resolutions.

Values are from the official code (microsoft/unilm, vlmo: task_finetune_*), and appendices C and D of the paper agree
unless a comment says otherwise. Set --start-from to the pre-trained model and --data.train to the data. All recipes use
AdamW (0.9, 0.98), weight decay 0.01, linear decay after 10 % warm-up, and texts of 40 tokens; text dropout equals drop
path. With --data.validation, retrieval keeps the best model by the mean of the six recalls, as the official code does.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.models.vlmo import VLMoConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE, OPTIM
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

QUESTIONS = 434_867 + 210_051 * 39_504 // 40_504
"""VQAv2's training and validation questions, without those of 1,000 images for validation; the official code splits
differently in every run."""
SENTENCES = 86_373
"""NLVR2's training examples, as counted in a copy on the Hugging Face hub (TIGER-Lab/Mantis-Instruct)."""

ITC = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal")
"""The dual encoder alone, as published, without the features of the vision-language experts. With --task.itm-weight 1
one checkpoint searches and re-ranks; the NeurIPS supplement describes this, but its settings are unpublished."""

RUN = Run(precision="bf16", save_every=1000, log_every=50)
BY_RECALL = replace(RUN, eval_every=500, best="*/R@*")


def vqa_base() -> Recipe:
    """VLMo-Base on VQAv2 at 480 px, 10 epochs: test-dev 76.6; needs --task.answers."""
    return _vqa(BASE, lr=3e-5)


def vqa_base_plus() -> Recipe:
    """VLMo-Base-plus on VQAv2 at 480 px, 10 epochs: test-dev 78.5 (README only); needs --task.answers."""
    return _vqa(BASE_PLUS, lr=3e-5)


def vqa_large() -> Recipe:
    """VLMo-Large on VQAv2 at 480 px, 10 epochs: test-dev 79.9; needs --task.answers."""
    return _vqa(LARGE, lr=1.5e-5)


def nlvr2_base() -> Recipe:
    """VLMo-Base on NLVR2 at 384 px, 10 epochs: dev 82.8, test-P 83.3."""
    return _nlvr2(BASE, lr=5e-5, drop_path=0.1)


def nlvr2_base_plus() -> Recipe:
    """VLMo-Base-plus on NLVR2 at 384 px, 10 epochs: test-P 85.1 (README only)."""
    return _nlvr2(BASE_PLUS, lr=3e-5, drop_path=0.2)


def nlvr2_large() -> Recipe:
    """VLMo-Large on NLVR2 at 384 px, 10 epochs: dev 85.6, test-P 86.9."""
    return _nlvr2(LARGE, lr=3e-5, drop_path=0.15)


def nlvr2_base_224() -> Recipe:
    """VLMo-Base on NLVR2 at 224 px, the resolution of the ablations (dev 80.1 from a plain ViT)."""
    return _nlvr2(BASE, lr=5e-5, drop_path=0.1, size=224)


def nlvr2_base_plus_224() -> Recipe:
    """VLMo-Base-plus on NLVR2 at 224 px."""
    return _nlvr2(BASE_PLUS, lr=3e-5, drop_path=0.2, size=224)


def nlvr2_large_224() -> Recipe:
    """VLMo-Large on NLVR2 at 224 px."""
    return _nlvr2(LARGE, lr=3e-5, drop_path=0.15, size=224)


def coco_base() -> Recipe:
    """VLMo-Base retrieval on COCO at 384 px: text R@1 74.8, image R@1 57.2.

    3,000 steps (about 16 epochs), learning rate 3e-5; the paper has 2e-5 (1e-5 for large) and other lengths.
    """
    return _coco(BASE, lr=3e-5)


def coco_base_plus() -> Recipe:
    """VLMo-Base-plus retrieval on COCO at 384 px: text R@1 76.3, image R@1 58.6 (README only)."""
    return _coco(BASE_PLUS, lr=3e-5)


def coco_large() -> Recipe:
    """VLMo-Large retrieval on COCO at 384 px: text R@1 78.2, image R@1 60.6."""
    return _coco(LARGE, lr=2e-5)


def flickr30k_base() -> Recipe:
    """VLMo-Base retrieval on Flickr30k at 384 px: text R@1 92.3, image R@1 79.3; from the COCO model.

    1,500 steps (about 32 epochs) from the model fine-tuned on COCO [README], learning rate 3e-5; the paper has 1e-5.
    """
    return _flickr30k(BASE, lr=3e-5, drop_path=0.15)


def flickr30k_base_plus() -> Recipe:
    """VLMo-Base-plus retrieval on Flickr30k at 384 px: text R@1 93.2, image R@1 81.8 (README only)."""
    return _flickr30k(BASE_PLUS, lr=3e-5, drop_path=0.2)


def flickr30k_large() -> Recipe:
    """VLMo-Large retrieval on Flickr30k at 384 px: text R@1 95.3, image R@1 84.5; from the COCO model."""
    return _flickr30k(LARGE, lr=2e-5, drop_path=0.2)


def flickr30k_base_224() -> Recipe:
    """VLMo-Base retrieval on Flickr30k at 224 px, for ablations (learning rate 5e-5 in the paper)."""
    return _flickr30k(BASE, lr=3e-5, drop_path=0.15, size=224)


def _vqa(model: VLMoConfig, *, lr: float) -> Recipe:
    optim = replace(OPTIM, lr=lr, warmup=0.1, head_lr_mult=20.0)
    steps = 10 * QUESTIONS // 128
    return _recipe("vqa", replace(model, drop_path=0.15), VQAConfig(), optim, (480, 128, steps))


def _nlvr2(model: VLMoConfig, *, lr: float, drop_path: float, size: int = 384) -> Recipe:
    model = replace(model, drop_path=drop_path, image_slots=2)
    optim = replace(OPTIM, lr=lr, warmup=0.1)
    return _recipe("nlvr2", model, NLVR2Config(), optim, (size, 128, 10 * SENTENCES // 128))


def _coco(model: VLMoConfig, *, lr: float) -> Recipe:
    optim = replace(OPTIM, lr=lr, warmup=300)
    return _recipe("coco", replace(model, drop_path=0.2), ITC, optim, (384, 3072, 3000), BY_RECALL)


def _flickr30k(model: VLMoConfig, *, lr: float, drop_path: float, size: int = 384) -> Recipe:
    optim = replace(OPTIM, lr=lr, warmup=150)
    return _recipe("flickr30k", replace(model, drop_path=drop_path), ITC, optim, (size, 3072, 1500), BY_RECALL)


def _recipe(
    name: str, model: VLMoConfig, task: TaskConfig, optim: Optim, numbers: tuple[int, int, int], run: Run = RUN
) -> Recipe:
    """``numbers`` are the image size in pixels, the batch size and the number of steps."""
    size, batch, steps = numbers
    data = Data(image_size=(size, size), text_length=40, batch_size=batch, num_workers=8)
    model, run = replace(model, image_size=data.image_size), replace(run, steps=steps)
    return Recipe(name=name, model=model, task=task, data=data, optim=optim, run=run)
