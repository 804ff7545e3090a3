"""Every model is evaluated on its training task; unsupported outputs are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import changed, shards

from dualfuse import hub
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.runner import Plan, check_outputs, draw, evaluate
from dualfuse.layers.vq.autoencoder import AutoencoderConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.pretrain.vq_tokenizer import VQTokenizerConfig

PLAN = Plan(batch_size=4, num_workers=0)


def loaded(recipe: Recipe) -> hub.LoadedModel:
    torch.manual_seed(0)
    processor = Processor(
        ImageTransform(recipe.data.image_size), TextTransform(recipe.data.text_length, recipe.data.tokenizer)
    )
    return hub.LoadedModel(recipe.build().eval(), processor, recipe)


@pytest.fixture
def tokenizer(tiny: Recipe) -> hub.LoadedModel:
    model = AutoencoderConfig(codes=16, width=16, blocks=1, code_width=8)
    return loaded(replace(tiny, model=model, task=VQTokenizerConfig()))


def test_tokenizer_is_evaluated_by_its_training_metrics(tokenizer: hub.LoadedModel, tmp_path: Path) -> None:
    data = shards(tmp_path, 8)
    found = evaluate(tokenizer, data, PLAN)
    rows = [tokenizer.recipe.task.read(sample, tokenizer.processor, None)["view"] for sample in Shards.open(data)]
    images = torch.stack(rows).float() / 255
    with torch.no_grad():
        naive = (tokenizer.task.model.reconstruct(images).images - images).square().mean()
    assert found.metrics["error"] == pytest.approx(float(naive), rel=1e-4)
    assert found.size == "8 images" and "8 images, 0 excluded" in found.lines()
    losses = [each.loss for each in evaluate(tokenizer, data, replace(PLAN, answers=True)).predictions]
    assert np.mean(losses) == pytest.approx(found.metrics["loss"], rel=1e-4) and len(set(losses)) == 8
    draw(tokenizer, data, tmp_path / "codes.png")
    with Image.open(tmp_path / "codes.png") as grid:
        assert grid.width > 100


def test_pairs_are_evaluated_by_retrieval_and_all_metrics(tiny: Recipe, tmp_path: Path) -> None:
    model, data = loaded(tiny), shards(tmp_path, 8)
    quick, whole = evaluate(model, data, PLAN).metrics, evaluate(model, data, replace(PLAN, all_metrics=True)).metrics
    assert "text_to_image/R@1" in quick and not any(name.startswith("itm") for name in quick)
    assert quick.items() < whole.items() and {"itm/positive", "mlm/accuracy"} < whole.keys()
    alone = loaded(changed(tiny, itc_weight=0.0))
    assert evaluate(alone, data, PLAN).metrics.keys() == {
        "itm/positive",
        "itm/random_negative",
        "mlm/accuracy",
        "mlm/accuracy_other_image",
    }


def test_unsupported_outputs_are_refused(tiny: Recipe, tokenizer: hub.LoadedModel, tmp_path: Path) -> None:
    pairs = loaded(tiny).task
    with pytest.raises(ValueError, match=r"--answers a.csv: a Pairs model has no result of each"):
        check_outputs(loaded(changed(tiny, itc_weight=0.0)).task, answers=Path("a.csv"), save_image=None)
    with pytest.raises(ValueError, match=r"--save-image s.png: .* this is a Pairs model"):
        check_outputs(pairs, answers=None, save_image=Path("s.png"))
    check_outputs(tokenizer.task, answers=None, save_image=Path("s.png"))


@pytest.mark.parametrize("invalid", [{"batch_size": 0}, {"rerank": -3}, {"num_workers": -1}])
def test_invalid_plans_are_refused(invalid: dict[str, int]) -> None:
    (name,) = invalid
    with pytest.raises(DualfuseError, match=f"{name} (is )?{invalid[name]}"):
        Plan(**invalid)
