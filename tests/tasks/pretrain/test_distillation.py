"""Distillation against a loop that embeds one image or text at a time, and as the start of training on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import MODEL, changed, clip_recipe, png_image, recipe

from dualfuse import hub
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.errors import DualfuseError
from dualfuse.layers.heads import ITCHeadConfig
from dualfuse.recipe import Recipe
from dualfuse.recipes.distilled import nano
from dualfuse.tasks.pretrain import distillation
from dualfuse.tasks.pretrain.distillation import Distillation, DistillationConfig
from dualfuse.training.loop import train

SAMPLES = (
    Sample("both", png_image(1), ("the red cat",)),
    Sample("image", png_image(2)),
    Sample("text", b"", ("a dog runs on a hill",)),
    Sample("again", png_image(1), ("the red cat",)),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A tiny CLIP with random weights, another tokenizer and another image size; its folder is start_from."""
    folder = tmp_path_factory.mktemp("teacher")
    made = clip_recipe(folder)
    made = replace(made, model=replace(made.model, image=replace(made.model.image, image_size=(16, 16))))
    made = replace(made, data=replace(made.data, image_size=(16, 16)))
    torch.manual_seed(5)
    hub.save(folder / "model", made.build(), made)
    return replace(made, start_from=str(folder / "model"))


@pytest.fixture(scope="module")
def student(teacher: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    made = recipe(tmp_path_factory.mktemp("student"))
    task = DistillationConfig(teacher=teacher.start_from, itc_head=ITCHeadConfig(width=24))
    return replace(made, model=replace(MODEL, drop_path=0.0), task=task, data=replace(made.data, augment=None))


def batch_of(student: Recipe, samples: Sequence[Sample], config: DistillationConfig | None = None) -> Any:
    config, processor = config or student.task, student.data.processor()
    return config.collate([config.read(each, processor, np.random.default_rng(0)) for each in samples])


def built(student: Recipe) -> Distillation:
    torch.manual_seed(1)
    return student.build().eval()


def cosines(student: Recipe, task: Distillation, teacher: Recipe) -> tuple[dict[str, list[torch.Tensor]], ...]:
    """Return the embeddings of student and teacher, by modality, one input at a time."""
    processor, expected = student.data.processor(), hub.load(teacher.start_from)
    ours: dict[str, list[torch.Tensor]] = {"image": [], "text": []}
    theirs: dict[str, list[torch.Tensor]] = {"image": [], "text": []}
    for sample in SAMPLES:
        if sample.image:
            pixels = processor.image(sample.image, np.random.default_rng())[None]
            ours["image"].append(task.itc_heads[0].image(task.model.encode(task.model.embed_image(pixels)))[0])
            theirs["image"].append(torch.from_numpy(expected.encode_image([sample.image])[0]))
        if sample.texts:
            ids = torch.from_numpy(processor.text.encode(sample.texts[0]).ids)[None]
            tokens = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
            ours["text"].append(task.itc_heads[0].text(task.model.encode(tokens))[0])
            theirs["text"].append(torch.from_numpy(expected.encode_text([sample.texts[0]])[0]))
    return ours, theirs


@torch.no_grad()
def test_cosine_loss_equals_a_loop(student: Recipe, teacher: Recipe) -> None:
    task = built(student)
    output, (ours, theirs) = task(batch_of(student, SAMPLES)), cosines(student, task, teacher)
    means = {}
    for kind in ("image", "text"):
        pairs = list(zip(ours[kind], theirs[kind], strict=True))
        assert len(pairs) == 3
        means[kind] = sum(float(a @ b / a.norm()) for a, b in pairs) / 3
        assert float(output.log[f"cosine/{kind}"]) == pytest.approx(means[kind], abs=1e-5)
    assert float(output.loss) == pytest.approx(2 - means["image"] - means["text"], abs=1e-5)
    assert not any("teacher" in name for name in task.state_dict())


@torch.no_grad()
def test_contrastive_loss_equals_a_loop(student: Recipe, teacher: Recipe) -> None:
    """The fourth sample is the first one again, and no negative of it: the first place is right for both."""
    config = replace(student.task, loss="contrastive")
    task = built(replace(student, task=config))
    output, (ours, theirs) = task(batch_of(student, SAMPLES)), cosines(student, task, teacher)
    total = 0.0
    for kind in ("image", "text"):
        for number, right in enumerate((0, 1, 0)):
            logits = torch.stack([ours[kind][number] @ each for each in theirs[kind]])
            logits = logits / ours[kind][number].norm() * float(task.itc_heads[0].scale)
            total += float(logits.exp().sum().log() - logits[right]) / 3
    assert float(output.loss) == pytest.approx(total, abs=1e-4)


def test_batches_of_one_modality_reach_all_parameters(student: Recipe) -> None:
    used = []
    for samples in (SAMPLES, SAMPLES[1:2], SAMPLES[2:3]):
        task = built(student)
        output = task(batch_of(student, samples))
        output.loss.backward()
        used.append({name for name, parameter in task.named_parameters() if parameter.grad is not None})
        assert (float(output.log["loss/text"]) == 0) == (not samples[-1].texts)
    assert used[0] == used[1] == used[2]


def test_teacher_embeds_everything_once(student: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    distillation._teachers.clear()
    task, batch = built(student), batch_of(student, SAMPLES)
    first = task(batch).loss
    encoder = distillation._teacher(student.task.teacher, task.device)._encoder
    monkeypatch.setattr(type(encoder), "encode_image", lambda self, images: pytest.fail("again"))
    monkeypatch.setattr(type(encoder), "encode_text", lambda self, texts: pytest.fail("again"))
    assert torch.equal(task(batch).loss, first)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(pytest.fail.Exception):
        patch.setattr(distillation, "MAX_STORED", 3)
        task(batch_of(student, [Sample("new", png_image(7))]))  # there is no room: all are embedded again


def test_missing_and_unfit_teachers_are_refused(student: Recipe, tmp_path: Path) -> None:
    for changes, message in (
        ({"teacher": ""}, "no teacher: set --task.teacher"),
        ({"teacher": str(tmp_path)}, "is not a model folder"),
        ({"itc_head": ITCHeadConfig(width=8)}, r"embeddings of 24 numbers.*--task.itc-head.width 24"),
    ):
        config = replace(student.task, **changes)
        with pytest.raises(DualfuseError, match=message):
            built(replace(student, task=config))(batch_of(student, SAMPLES))
    with pytest.raises(BrokenSample, match="neither an image nor a text"):
        batch_of(student, [Sample("nothing", b"")])


def test_recipe_learns_from_images_and_from_texts_without_images(
    student: Recipe, teacher: Recipe, tmp_path: Path
) -> None:
    """Distillation on pairs and a text file, then all objectives on pairs, which start from its weights."""
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"a cat number {n} runs on the red hill" for n in range(40)))
    distil, joint = nano()
    data = replace(student.data, train=(*student.data.train, str(words)), weights=(1.0, 1.0))
    distil = changed(distil, steps=6, log_every=1, save_every=0, teacher=teacher.start_from)
    distil = replace(distil, model=student.model, task=replace(distil.task, itc_head=student.task.itc_head), data=data)
    joint = changed(joint, steps=1, save_every=0, lr=0.0)
    joint = replace(joint, model=student.model, task=replace(joint.task, itc_head=student.task.itc_head))
    joint = replace(joint, data=student.data)
    train((distil, joint), tmp_path / "run")
    taught = load_file(tmp_path / "run" / "distil" / "final" / "model.safetensors")
    after = load_file(tmp_path / "run" / "pairs" / "final" / "model.safetensors")
    assert taught.keys() < after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in taught.items())
    found = hub.load(tmp_path / "run" / "distil" / "final")
    assert found.encode_image([png_image(3)]).shape == found.encode_text(["a cat"]).shape == (1, 24)
