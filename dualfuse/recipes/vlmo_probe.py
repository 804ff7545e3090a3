"""VLMo linear probe on ImageNet as published for BEiT.

Values are from the official code (microsoft/unilm, beit: run_linear_eval.py, get_started_for_image_classification.md).
Three differences: the biases of the classifiers are not decayed; crops are resized bicubically, not bilinearly; and the
accuracy of the best layer is computed after every epoch, as there, but the model of its best epoch is kept, too. Set
--start-from to the pre-trained model, --data.train and --data.validation to the data, and --task.labels to the class
names if the samples have names.
"""

from __future__ import annotations

from dataclasses import replace

from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.recipes.vlmo import BASE
from dualfuse.recipes.vlmo_classification import AUGMENT, CENTER
from dualfuse.recipes.vlmo_images import IMAGES_1K
from dualfuse.tasks.finetune.linear_probe import BEST_LAYER, LinearProbeConfig

EPOCHS = 100

RECIPES = {
    "imagenet-vlmo-base-probe": (
        "VLMo-Base linear probe on ImageNet-1k with the model frozen: a classifier on each layer, 100 epochs.",
        Recipe(
            name="probe",
            model=replace(BASE, drop_path=0.0),
            task=LinearProbeConfig(),
            data=Data(preprocess=CENTER, augment=replace(AUGMENT, rand_augment=False), batch_size=1024, num_workers=8),
            optim=Optim(lr=4e-3, betas=(0.9, 0.999), weight_decay=1e-4, schedule="cosine", plateaus=EPOCHS),
            run=Run(
                steps=EPOCHS * IMAGES_1K // 1024,
                epochs=EPOCHS,
                eval_epochs=1,
                best=BEST_LAYER,
                precision="bf16",
                save_every=2000,
                log_every=50,
            ),
            train_only=("classifiers.*",),
        ),
    ),
}
"""Summary and recipe by name."""
