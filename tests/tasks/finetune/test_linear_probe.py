"""The linear probe: features by hand, a classifier per layer, a frozen model, and the numbers of BEiT's script."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import MODEL, png_image, recipe, shards
from torch.testing import assert_close

from dualfuse import recipes
from dualfuse.data.sample import Sample
from dualfuse.errors import DualfuseError
from dualfuse.tasks.finetune.linear_probe import LinearProbe, LinearProbeConfig
from dualfuse.training.loop import train
from dualfuse.training.run_log import read_log

VLMO = replace(MODEL, drop_path=0.0)


def test_logits_and_loss_by_hand() -> None:
    """The states after each block, from a hook on it; their class token and the mean of their patches."""
    torch.manual_seed(0)
    task = LinearProbe(LinearProbeConfig(num_classes=3, layer=1), VLMO.build()).eval()
    states: list[torch.Tensor] = []
    for block in task.model.blocks:
        block.register_forward_hook(lambda _, __, output: states.append(output))
    images, target = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 2])
    found = task.layer_logits(images)
    losses = []
    for number, (state, classifier) in enumerate(zip(states, task.classifiers, strict=True)):
        features = torch.stack([torch.cat([row[0], sum(row[1:]) / (len(row) - 1)]) for row in state])
        logits = features @ classifier.weight.T + classifier.bias
        assert_close(found[number], logits)
        losses.append(-logits.log_softmax(1)[torch.arange(4), target].mean())
    assert_close(task({"image": images, "target": target}).loss, sum(losses))
    assert_close(task.logits({"image": images}), found[0])


def test_only_classifiers_are_trained_and_every_layer_is_evaluated(tmp_path: Path) -> None:
    made = recipe(tmp_path, images=1)
    content = [Sample(f"{n}", png_image(n % 4), meta={"label": n % 4 // 2}) for n in range(16)]
    data = replace(
        made.data,
        train=(shards(tmp_path / "labelled", content),),
        validation=shards(tmp_path / "labelled", content[:5], "val"),
        augment=None,
        batch_size=8,
        num_workers=0,
    )
    run = replace(made.run, steps=30, eval_every=15, best="accuracy/best_layer", save_every=30)
    optim = replace(made.optim, lr=0.05, warmup=0.0, schedule="cosine", plateaus=3)
    task = LinearProbeConfig(num_classes=2)
    train(
        [replace(made, model=VLMO, task=task, data=data, run=run, optim=optim, train_only=("classifiers.*",))],
        tmp_path / "run",
    )
    last = read_log(tmp_path / "run")[-1]
    accuracies = [last[f"validation/accuracy/layer{layer}"] for layer in (1, 2)]
    assert last["validation/accuracy/best_layer"] == max(accuracies) == 1.0
    assert last["validation/accuracy"] == accuracies[1]
    torch.manual_seed(made.run.seed)
    before = LinearProbe(task, VLMO.build()).state_dict()
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"classifiers.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")}


def test_numbers_of_beit() -> None:
    """Of run_linear_eval.py and its published command: 8 GPUs with 128 images."""
    [probe] = recipes.find_recipe("imagenet-vlmo-base-probe")
    optim, augment = probe.optim, probe.data.augment
    assert (optim.lr, optim.weight_decay, optim.warmup, optim.min_lr, optim.plateaus) == (4e-3, 1e-4, 0, 0, 100)
    assert probe.run.steps * probe.data.batch_size / 1_281_167 == pytest.approx(100, abs=0.01)
    assert augment is not None and (augment.crop, augment.flip, augment.rand_augment) == ((0.08, 1.0), 0.5, False)
    with torch.device("meta"):
        task = probe.build()
    assert isinstance(task, LinearProbe)
    assert [classifier.weight.shape for classifier in task.classifiers] == [(1000, 2 * 768)] * 12


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(DualfuseError, match="layer is 3; this model has layers 1 to 2"):
        LinearProbeConfig(layer=3).build(VLMO.build())
