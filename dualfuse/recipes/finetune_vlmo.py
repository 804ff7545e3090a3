"""VLMo fine-tuning as published: VQAv2, NLVR2, and retrieval on COCO and Flickr30k, at all sizes and resolutions.

Values are from the official code (microsoft/unilm, vlmo: task_finetune_*), and appendices C and D of the paper agree
unless a comment says otherwise. Set --start-from to the pre-trained model and --data.train to the data. All recipes use
AdamW (0.9, 0.98), weight decay 0.01, linear decay after 10 % warm-up, and texts of 40 tokens; text dropout equals drop
path.

The best model on --data.validation is kept, after every epoch: of VQAv2 by the accuracy on the questions that were
set aside (``rest_val``), of NLVR2 by the accuracy on dev, as in the official code. Retrieval is chosen by the mean of
the six recalls; the official code adds two accuracies of matching within a batch to them, which depend on the batch
size, and keeps the model of every epoch.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.vlmo import BASE, BASE_PLUS, LARGE, OPTIM
from dualfuse.tasks.base import TaskConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

Listed = tuple[str, tuple[str, Recipe]]

QUESTIONS = 434_867 + 210_051 * 39_504 // 40_504
"""VQAv2's training and validation questions, without those of 1,000 images for validation; the official code splits
differently in every run."""
SENTENCES = 86_373
"""NLVR2's training examples, as counted in a copy on the Hugging Face hub (TIGER-Lab/Mantis-Instruct)."""

ITC = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal")
"""The dual encoder alone, as published, without the features of the vision-language experts. With --task.itm-weight 1
one checkpoint searches and re-ranks; the NeurIPS supplement describes this, but its settings are unpublished."""

SIZES = {"base": BASE, "base-plus": BASE_PLUS, "large": LARGE}
RUN = Run(precision="bf16", save_every=1000, log_every=50)
RETRIEVAL = {"coco": 566_747 // 3072, "flickr30k": 29_000 * 5 // 3072}
"""Steps of an epoch: captions of the training split divided by the batch size."""


def _vqa(size: str, lr: float, result: str) -> Listed:
    summary = f"on VQAv2 at 480 px, 10 epochs: test-dev {result}; needs --task.answers."
    optim = replace(OPTIM, lr=lr, warmup=0.1, head_lr_mult=20.0)
    return _listed("vqa", size, summary, 0.15, VQAConfig(), optim, (480, 128, 10 * QUESTIONS // 128))


def _nlvr2(size: str, lr: float, drop_path: float, note: str, pixels: int = 384) -> Listed:
    summary, optim = f"on NLVR2 at {pixels} px{note}.", replace(OPTIM, lr=lr, warmup=0.1)
    return _listed("nlvr2", size, summary, drop_path, NLVR2Config(), optim, (pixels, 128, 10 * SENTENCES // 128))


def _coco(size: str, lr: float, result: str) -> Listed:
    """3,000 steps are about 16 epochs; the paper has learning rate 2e-5 (1e-5 for large) and other lengths."""
    summary, optim = f"retrieval on COCO at 384 px: {result}.", replace(OPTIM, lr=lr, warmup=300)
    return _listed("coco", size, summary, 0.2, ITC, optim, (384, 3072, 3000))


def _flickr30k(size: str, lr: float, drop_path: float, note: str, pixels: int = 384) -> Listed:
    """1,500 steps are about 32 epochs, from the model fine-tuned on COCO [README]; the paper has 1e-5 for base."""
    summary, optim = f"retrieval on Flickr30k at {pixels} px{note}.", replace(OPTIM, lr=lr, warmup=150)
    return _listed("flickr30k", size, summary, drop_path, ITC, optim, (pixels, 3072, 1500))


def _listed(
    name: str, size: str, summary: str, drop_path: float, task: TaskConfig, optim: Optim, numbers: tuple[int, int, int]
) -> Listed:
    """``numbers`` are the image size in pixels, the batch size and the number of steps with the published data."""
    pixels, batch, steps = numbers
    data = Data(image_size=(pixels, pixels), text_length=40, batch_size=batch, num_workers=8)
    data = replace(data, sample_by="caption" if name in RETRIEVAL else "image")
    model = replace(SIZES[size], drop_path=drop_path, image_size=data.image_size)
    if isinstance(task, NLVR2Config):
        model = replace(model, image_slots=2)
    full_name = f"{name}-vlmo-{size}" + ("-224" if pixels == 224 else "")
    recipe = Recipe(name=name, model=model, task=task, data=data, optim=optim, run=_run(name, steps))
    return full_name, (f"VLMo-{size.capitalize()} {summary}", recipe)


def _run(name: str, steps: int) -> Run:
    """Return a run that keeps the best model by the official monitor, after every epoch.

    The ten epochs of VQAv2 and NLVR2 follow the data; the official code gives retrieval a number of steps. With the
    published data, 184 or 47 of them are an epoch of captions.
    """
    if name in RETRIEVAL:
        return replace(RUN, steps=steps, eval_every=RETRIEVAL[name], eval_epochs=1, best="*/R@*")
    return replace(RUN, steps=steps, epochs=10, eval_epochs=1, best="accuracy")


RECIPES = dict(
    (
        _vqa("base", 3e-5, "76.6"),
        _vqa("base-plus", 3e-5, "78.5 (README only)"),
        _vqa("large", 1.5e-5, "79.9"),
        _nlvr2("base", 5e-5, 0.1, ", 10 epochs: dev 82.8, test-P 83.3"),
        _nlvr2("base", 5e-5, 0.1, ", the resolution of the ablations (dev 80.1 from a plain ViT)", 224),
        _nlvr2("base-plus", 3e-5, 0.2, ", 10 epochs: test-P 85.1 (README only)"),
        _nlvr2("base-plus", 3e-5, 0.2, "", 224),
        _nlvr2("large", 3e-5, 0.15, ", 10 epochs: dev 85.6, test-P 86.9"),
        _nlvr2("large", 3e-5, 0.15, "", 224),
        _coco("base", 3e-5, "text R@1 74.8, image R@1 57.2"),
        _coco("base-plus", 3e-5, "text R@1 76.3, image R@1 58.6 (README only)"),
        _coco("large", 2e-5, "text R@1 78.2, image R@1 60.6"),
        _flickr30k("base", 3e-5, 0.15, ": text R@1 92.3, image R@1 79.3; from the COCO model"),
        _flickr30k("base", 3e-5, 0.15, ", for ablations (learning rate 5e-5 in the paper)", 224),
        _flickr30k("base-plus", 3e-5, 0.2, ": text R@1 93.2, image R@1 81.8 (README only)"),
        _flickr30k("large", 2e-5, 0.2, ": text R@1 95.3, image R@1 84.5; from the COCO model"),
    )
)
"""Summary and recipe by name. Arguments: the size, the learning rate, the drop path, and published results."""
