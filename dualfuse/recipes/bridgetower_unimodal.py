"""The towers of BridgeTower and METER after fusion training, each alone: GLUE and CIFAR (BridgeTower's appendix).

Values are from microsoft/BridgeTower (run_glue.py, run_cifar.py, ftfpt_glue.sh, ftfpt_cifar.sh). Set --start-from to
the pre-trained model, or to the folder that ``dualfuse convert`` makes of CLIP and RoBERTa for the towers before it,
and --data.tokenizer to RoBERTa's tokenizer.json. The other tower and the cross-modal layers are frozen, as no output
depends on them. The best model on --data.validation is kept, after every epoch.

The published results of GLUE are the best of learning rates 1e-5 and 2e-5 and batches of 16 and 32, with early stopping
after three epochs without a better score, which this package does not have; those of CIFAR are the best of 1e-5 and
2e-5, and of 10 and 100 epochs, on the test set. The paper calls CIFAR a linear probe; its script trains the whole tower
and leaves the classifier at its random start. Here both are trained.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.data.image.transform import OFFICIAL_CLIP
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.bridgetower import BASE, METER
from dualfuse.tasks.finetune.image_classification import ImageClassificationConfig
from dualfuse.tasks.finetune.text_classification import TextClassificationConfig

MODELS = {"bridgetower": BASE, "meter": METER}
OPTIM = Optim(lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, warmup=0.06)
MNLI, ENTAILS = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
CIFAR_IMAGES = 50_000

GLUE = {
    "cola": (8_551, TextClassificationConfig(), "matthews_correlation", "61.8, 61.1"),
    "sst2": (67_349, TextClassificationConfig(), "accuracy", "95.0, 94.7"),
    "mrpc": (3_668, TextClassificationConfig(), "f1", "92.6, 92.1"),
    "qqp": (363_846, TextClassificationConfig(), "f1", "89.2, 89.1"),
    "stsb": (5_749, TextClassificationConfig(num_classes=1), "spearman", "90.9, 90.7"),
    "mnli": (392_702, TextClassificationConfig(labels=MNLI), "accuracy", "87.3, 87.3"),
    "qnli": (104_743, TextClassificationConfig(labels=ENTAILS), "accuracy", "92.8, 92.7"),
    "rte": (2_490, TextClassificationConfig(labels=ENTAILS), "accuracy", "79.8, 79.1"),
}
"""Training examples, task, the metric that is published, and its values for BridgeTower and METER."""
CIFAR = {"cifar10": (10, "98.5, 98.5"), "cifar100": (100, "90.2, 89.5")}
"""Number of classes, and the accuracies of BridgeTower and METER."""


def _glue(name: str, model: str) -> tuple[str, Recipe]:
    samples, task, metric, results = GLUE[name]
    result = results.split(", ")[model == "meter"]
    steps = 10 * samples // 32
    recipe = Recipe(
        name=name,
        model=MODELS[model],
        task=task,
        data=Data(image_size=BASE.image.image_size, text_length=512, batch_size=32, num_workers=2),
        optim=OPTIM,
        run=Run(steps=steps, epochs=10, eval_epochs=1, best=metric, log_every=50),
    )
    return f"{_title(model)}'s text tower on {name.upper()} of GLUE, 10 epochs: {metric} {result}.", recipe


def _cifar(name: str, model: str) -> tuple[str, Recipe]:
    classes, results = CIFAR[name]
    result, size = results.split(", ")[model == "meter"], (224, 224)
    made_for, data = MODELS[model], Data(image_size=size, preprocess=OFFICIAL_CLIP, augment=None, text_length=50)
    recipe = Recipe(
        name=name,
        model=replace(made_for, image=replace(made_for.image, image_size=size)),
        task=ImageClassificationConfig(num_classes=classes, features="first", head_scale=1.0),
        data=replace(data, batch_size=512, num_workers=8),
        optim=replace(OPTIM, lr=2e-5, eps=1e-8, weight_decay=0.01),
        run=Run(steps=10 * CIFAR_IMAGES // 512, epochs=10, eval_epochs=1, best="accuracy", log_every=50),
    )
    return f"{_title(model)}'s image tower on {name.upper()} at 224 px, 10 epochs: accuracy {result}.", recipe


def _title(model: str) -> str:
    return {"bridgetower": "BridgeTower-Base", "meter": "METER-Base"}[model]


RECIPES = {f"glue-{name}-{model}-base": _glue(name, model) for model in MODELS for name in GLUE} | {
    f"{name}-{model}-base": _cifar(name, model) for model in MODELS for name in CIFAR
}
"""Summary and recipe by name."""
