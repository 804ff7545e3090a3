"""Every model is judged by what it was trained for, and asked for nothing that it does not give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import changed, shards

from dualfuse import hub
from dualfuse.data.images import ImageTransform
from dualfuse.data.shards import Shards
from dualfuse.data.text import Text
from dualfuse.engine.evaluate import Plan
from dualfuse.engine.judge import check_wishes, draw_codes, judge, judge_whole
from dualfuse.layers.autoencoder import AutoencoderConfig
from dualfuse.recipe import Recipe
from dualfuse.tasks.base import Prep
from dualfuse.tasks.reconstruction import ReconstructionConfig

PLAN = Plan(batch=4, workers=0)


def loaded(recipe: Recipe) -> hub.Loaded:
    torch.manual_seed(0)
    prep = Prep(ImageTransform(recipe.data.image_size), Text(recipe.data.text_length, recipe.data.tokenizer))
    return hub.Loaded(recipe.build().eval(), prep, recipe)


@pytest.fixture
def tokenizer(tiny: Recipe) -> hub.Loaded:
    model = AutoencoderConfig(codes=16, width=16, blocks=1, code_width=8)
    return loaded(replace(tiny, model=model, task=ReconstructionConfig()))


def test_a_tokenizer_by_its_error(tokenizer: hub.Loaded, tmp_path: Path) -> None:
    data = shards(tmp_path, 8)
    found = judge(tokenizer, data, PLAN)
    rows = [tokenizer.recipe.task.read(sample, tokenizer.prep, None)["view"] for sample in Shards.open(data)]
    pictures = torch.stack(rows).float() / 255
    with torch.no_grad():
        naive = (tokenizer.task.model.reconstruct(pictures).pictures - pictures).square().mean()
    assert found.metrics["error"] == pytest.approx(float(naive), rel=1e-4)
    assert found.size == "8 samples" and "8 samples, 0 excluded" in found.lines()
    draw_codes(tokenizer, data, tmp_path / "codes.png")
    with Image.open(tmp_path / "codes.png") as sheet:
        assert sheet.width > 100


def test_pairs_by_retrieval_and_more_when_asked(tiny: Recipe, tmp_path: Path) -> None:
    model, data = loaded(tiny), shards(tmp_path, 8)
    quick, whole = judge(model, data, PLAN).metrics, judge_whole(model, data, PLAN).metrics
    assert "text_to_image/R@1" in quick and not any(name.startswith("match") for name in quick)
    assert quick.items() < whole.items() and {"match/right", "words"} < whole.keys()
    alone = loaded(changed(tiny, contrast=0.0))
    assert judge(alone, data, PLAN).metrics.keys() == {"match/right", "match/random", "words", "words/other_picture"}


def test_what_a_model_does_not_give_is_refused(tiny: Recipe, tokenizer: hub.Loaded, tmp_path: Path) -> None:
    pairs = loaded(tiny).task
    with pytest.raises(ValueError, match=r"--answers a.csv: a Pairs model answers no questions"):
        check_wishes(pairs, answers=Path("a.csv"), sheet=None)
    with pytest.raises(ValueError, match=r"--sheet s.png: it shows what a tokenizer makes .* this is a Pairs model"):
        check_wishes(pairs, answers=None, sheet=Path("s.png"))
    check_wishes(tokenizer.task, answers=None, sheet=Path("s.png"))
