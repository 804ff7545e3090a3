"""Zero-shot classification: class embeddings by a loop, and classes that ITC has learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import MODEL, png_image, shards, tokenizer
from torch.testing import assert_close

from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.models.vlmo import InitConfig
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.zero_shot import CLIP, PLAIN, ZeroShot, class_embeddings
from dualfuse.tasks.pretrain.pairs import Pairs, PairsConfig

NAMES = ("red cat", "blue dog", "green fish that runs")
CONTRAST = PairsConfig(itm_weight=0.0, mlm_weight=0.0, itc_features="unimodal")


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(ImageTransform((32, 32)), TextTransform(12, tokenizer(tmp_path_factory.mktemp("words"))))


@pytest.fixture
def task() -> Pairs:
    torch.manual_seed(0)
    model = replace(MODEL, drop_path=0.0, init=InitConfig(std=0.15, layer_scale=0.0)).build()
    return CONTRAST.build(model).eval()


@torch.no_grad()
def test_class_embeddings_equal_those_of_single_sentences(task: Pairs, processor: Processor) -> None:
    templates = ("a {}", "the big {} sleeps", "{}")
    expected = []
    for name in NAMES:
        total = torch.zeros(32)
        for template in templates:
            ids = torch.from_numpy(processor.text.encode(template.format(name)).ids)[None]
            vector = task.itc_heads[0].text(task.model.encode(task.model.embed_text(ids, torch.ones_like(ids))))[0]
            total = total + vector / vector.square().sum().sqrt()
        expected.append(total / total.square().sum().sqrt())
    found = class_embeddings(task, processor, NAMES, templates)
    assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    many = class_embeddings(task, processor, NAMES * 20, templates)  # more than are encoded at once
    assert_close(many, found.repeat(20, 1), atol=1e-5, rtol=1e-5)
    assert_close(
        class_embeddings(task, processor, NAMES), class_embeddings(task, processor, NAMES, ("a photo of a {}.",))
    )
    assert len(CLIP) == 8 and CLIP[:1] == PLAIN


def test_classes_learnt_by_itc_are_recognised(task: Pairs, processor: Processor, tmp_path: Path) -> None:
    """Train six images, two per name, as pairs, and classify them without a head."""
    rng = np.random.default_rng(0)
    samples = [Sample(str(n), png_image(n), (f"a {NAMES[n % 3]}",), {"label": n % 3}) for n in range(6)]
    batch = CONTRAST.collate([CONTRAST.read(sample, processor, rng) for sample in samples])
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        task(batch).loss.backward()
        optimizer.step()
    able = ZeroShot(task, class_embeddings(task, processor, NAMES, ("a {}",)), ("cat", "dog", "fish")).eval()
    batch: Any = able.cfg.collate([able.cfg.read_question(sample, processor, rng) for sample in samples])
    shares = able.probabilities(batch)
    assert [able.names[number] for number in shares.argmax(1).tolist()] == [one.target[0] for one in batch["questions"]]
    with torch.no_grad():
        image = task.image_features(task.model.embed_image(batch["image"]))
        expected = task.itc_heads[0].scale * image @ able.embeddings.T
    assert_close(able.logits(batch).detach(), expected)
    folder = shards(tmp_path, [*samples, Sample("9", png_image(9))])
    found = able.evaluate(EvaluationData(Shards.open(folder), processor), Plan(batch_size=4, num_workers=0))
    assert found.metrics == {"accuracy": 1.0, "accuracy/top5": 1.0} and found.size == "7 questions, 6 of them labelled"


def test_invalid_names_and_models_are_refused(task: Pairs, processor: Processor) -> None:
    with pytest.raises(ValueError, match=r"'a photo' has no \{\} for the name"):
        class_embeddings(task, processor, NAMES, ("a photo",))
    with pytest.raises(ValueError, match="0 names and 1 templates"):
        class_embeddings(task, processor, ())
    with pytest.raises(ValueError, match="3 embeddings of classes for 2 labels"):
        ZeroShot(task, class_embeddings(task, processor, NAMES), ("a", "b"))
    with pytest.raises(ValueError, match=r"call eval\(\)"):
        class_embeddings(task.train(), processor, NAMES)
    matching = PairsConfig(itc_weight=0.0, itc_features="unimodal").build(MODEL.build()).eval()
    with pytest.raises(ValueError, match="trained without ITC"):
        class_embeddings(matching, processor, NAMES)
    with pytest.raises(ValueError, match="this PairClassification model was trained without ITC"):
        class_embeddings(EntailmentConfig().build(MODEL.build()).eval(), processor, NAMES)


def test_braces_in_names_are_literal(task: Pairs, processor: Processor) -> None:
    assert class_embeddings(task, processor, ("cat {0}", "{"), ("a {}",)).isfinite().all()


@torch.no_grad()
def test_top_five_of_nine_by_hand(task: Pairs, processor: Processor, tmp_path: Path) -> None:
    names = tuple(f"class {n}" for n in range(9))
    able = ZeroShot(task, torch.nn.functional.normalize(torch.randn(9, 32)), names).eval()
    samples = [Sample(f"{n:02d}", png_image(n), meta={"label": n % 9}) for n in range(45)]
    images = torch.stack([processor.image(sample.image, np.random.default_rng(0)) for sample in samples])
    logits = able.logits({"image": images})
    ahead = [int((row > row[n % 9]).sum()) for n, row in enumerate(logits)]
    expected = {"accuracy": ahead.count(0) / 45, "accuracy/top5": sum(number < 5 for number in ahead) / 45}
    assert 0 < expected["accuracy"] < expected["accuracy/top5"] < 1
    found = able.evaluate(
        EvaluationData(Shards.open(shards(tmp_path, samples)), processor), Plan(batch_size=7, num_workers=0)
    )
    assert found.metrics == pytest.approx(expected)
