"""Classification of images with a text: reading, training and metrics, for every model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from tiny import BRIDGETOWER as TINY_TOWERS
from tiny import MODEL, caption, png_image, tokenizer
from torch.testing import assert_close

from dualfuse.config import from_json, to_json
from dualfuse.data.image.transform import ImageTransform
from dualfuse.data.processor import Processor
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.text.tokenizer import TextTransform
from dualfuse.metrics.accuracy import Accuracy, Question
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import Consistency, NLVR2Config
from dualfuse.tasks.finetune.questions import QuestionConfig
from dualfuse.tasks.finetune.vqa import VQAConfig

BRIDGETOWER = replace(TINY_TOWERS, image_slots=2, init_std=0.15)
MODELS: dict[str, ModelConfig] = {
    "vlmo": replace(MODEL, image_slots=2, drop_path=0.0, init=InitConfig(std=0.15, layer_scale=0.0)),
    "bridgetower": BRIDGETOWER,
    "meter": replace(BRIDGETOWER, bridge="none"),
}
ANSWERS = ("red", "blue", "2", "cat")
TASKS: dict[str, QuestionConfig] = {
    "vqa": VQAConfig(answers=ANSWERS),
    "nlvr2": NLVR2Config(dropout=0.1),
    "entailment": EntailmentConfig(labels=("bad", "fine")),
}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Processor:
    return Processor(ImageTransform((32, 32)), TextTransform(12, tokenizer(tmp_path_factory.mktemp("words"))))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sample(number: int = 0, **meta: object) -> Sample:
    meta = {"label": number % 2, "answer": ANSWERS[number % 4]} | meta
    return Sample(
        f"{number}", png_image(number), (caption(number, 3 + number % 3),), meta, other_images=(png_image(number + 50),)
    )


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("model", MODELS)
def test_task_overfits_four_samples(model: str, name: str, processor: Processor) -> None:
    """Every parameter that is used has a gradient, and the loss falls below a third."""
    torch.manual_seed(0)
    cfg, rows = TASKS[name], [sample(number) for number in range(4)]
    task = cfg.build(MODELS[model].build())
    assert isinstance(task, Classification)
    batch = cfg.collate([cfg.read(row, processor, rng()) for row in rows])
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss = task(batch).loss
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if losses[-1] < 0.3 * losses[0]:
            break
    assert losses[-1] < 0.3 * losses[0]
    without = {part for part, parameter in task.named_parameters() if parameter.grad is None}
    assert not {part for part in without if part.startswith("classifier")}
    assert "model.types.weight" not in without
    assert len(without) < 0.3 * len(list(task.parameters())), without  # experts of VLMo that only the last layers skip

    batch = cfg.collate([cfg.read_question(row, processor, rng()) for row in rows])
    task.eval()
    answers = [task.names[number] for number in task.probabilities(batch).argmax(1).tolist()]
    assert answers == [one.target[0] for one in batch["questions"]]


@pytest.mark.parametrize("name", TASKS)
@torch.no_grad()
def test_batch_equals_single_examples(name: str, processor: Processor) -> None:
    cfg = TASKS[name]
    for model in MODELS.values():
        task = cfg.build(model.build()).eval()
        rows = [cfg.read_question(sample(number), processor, rng()) for number in range(3)]
        alone = torch.cat([task.probabilities(cfg.collate([row])) for row in rows])
        together = task.probabilities(cfg.collate(rows))
        assert together.shape == (3, len(task.names))
        assert_close(together, alone, atol=1e-5, rtol=1e-5)
        is_share = name != "vqa"
        assert torch.allclose(together.sum(1), torch.ones(3)) == is_share


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_order_of_two_images_matters(model: str, processor: Processor) -> None:
    torch.manual_seed(0)
    cfg = TASKS["nlvr2"]
    task = cfg.build(MODELS[model].build()).eval()
    for parameter in task.parameters():  # far from its first value, which hides much
        torch.nn.init.normal_(parameter, std=0.3)
    batch = cfg.collate([cfg.read_question(sample(number), processor, rng()) for number in range(2)])
    assert batch["images"].shape == (2, 2, 3, 32, 32)
    assert torch.equal(batch["images"][0, 1], processor.image(png_image(50), rng()))
    turned = batch | {"images": batch["images"].flip(1)}
    assert (task.logits(batch) - task.logits(turned)).abs().amax(1).min() > 1e-3


def test_soft_scores_are_the_target(processor: Processor) -> None:
    cfg = VQAConfig(answers=ANSWERS)
    people = ["Red"] * 2 + ["two"] * 5 + ["unheard of"] * 3
    row = cfg.read(sample(answers=people), processor, rng())
    assert_close(row["target"], torch.tensor([0.6, 0.0, 1.0, 0.0]))
    assert cfg.read_question(sample(answers=people, id=7, answer_type="other"), processor, rng())[
        "question"
    ] == Question("0", 7, caption(0, 3), tuple(people), "other")
    assert cfg.read(sample(), processor, rng())["target"].tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("meta", [{"answers": ["unheard of"] * 10}, {"answers": []}, {"answers": 3}, {"answers": [3]}])
def test_question_without_answer_in_vocabulary_is_skipped(meta: dict[str, object], processor: Processor) -> None:
    with pytest.raises(BrokenSample, match="answers"):
        VQAConfig(answers=ANSWERS).read(sample(**meta), processor, rng())


def test_answers_without_vocabulary_have_numbers(processor: Processor) -> None:
    cfg = VQAConfig(num_answers=3)
    assert cfg.names == ("0", "1", "2")
    assert cfg.read_question(sample(), processor, rng())["question"].target == ("red",)
    with pytest.raises(ValueError, match="give --task"):
        cfg.read(sample(), processor, rng())


def test_answers_are_a_file_on_the_command_line_and_stored_in_json(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("\n".join(ANSWERS), encoding="utf-8")
    cfg = tyro.cli(VQAConfig, args=["--answers", str(file)])
    assert cfg == TASKS["vqa"]
    assert from_json(to_json(cfg)) == cfg


@pytest.mark.parametrize(("label", "expected"), [("fine", 1), (1, 1), (0, 0), (True, 1)])
def test_labels_by_name_and_index(label: object, expected: int, processor: Processor) -> None:
    row = TASKS["entailment"].read(sample(label=label), processor, rng())
    assert int(row["target"]) == expected


@pytest.mark.parametrize(
    ("label", "reason"), [("good", "bad, fine"), (2, "label is 2"), (-1, "-1"), (None, 'no "label"')]
)
def test_unknown_labels_are_broken_samples(label: object, reason: str, processor: Processor) -> None:
    with pytest.raises(BrokenSample, match=reason):
        TASKS["entailment"].read(sample(label=label), processor, rng())


def test_incomplete_samples_and_labels_are_refused(processor: Processor) -> None:
    for broken, reason in (
        (replace(sample(), texts=()), "0 texts"),
        (replace(sample(), texts=("a", "b")), "2 texts"),
        (replace(sample(), other_images=()), "1 images of the 2"),
        (sample(id=1.5), '"id" is a float'),
    ):
        with pytest.raises(BrokenSample, match=reason):
            TASKS["nlvr2"].read_question(broken, processor, rng())
    for labels in ((), ("one",), ("one", "one", "two")):
        with pytest.raises(ValueError, match="give two or more"):
            EntailmentConfig(labels=labels)
        with pytest.raises(ValueError, match="give two or more"):
            NLVR2Config(labels=labels)


def test_unlabelled_samples_can_be_read(processor: Processor) -> None:
    unknown = Sample("key", png_image(0), ("a cat",), {}, other_images=(png_image(1),))
    for cfg in TASKS.values():
        assert cfg.read_question(unknown, processor, rng())["question"] == Question("key", "key", "a cat")


def test_accuracy_by_label() -> None:
    metric = Accuracy()
    assert metric.result() == {}
    for truth, answer in (("cat", "cat"), ("cat", "dog"), ("dog", "dog"), ("cat", "cat")):
        metric.add(Question("", "", "", (truth,)), (answer,))
    assert metric.result() == pytest.approx({"accuracy": 3 / 4, "accuracy/cat": 2 / 3, "accuracy/dog": 1.0})


def test_consistency_needs_every_pair_of_a_sentence() -> None:
    """Sentence 0 of set 850 is correct for one of two pairs, sentence 1 for both, sentence 0 of set 851 for none."""
    metric = Consistency()
    assert metric.result() == {}
    correct = {
        "dev-850-0-0": True,
        "dev-850-1-0": False,
        "dev-850-0-1": True,
        "dev-850-1-1": True,
        "dev-851-0-0": False,
    }
    for identifier, right in correct.items():
        metric.add(Question("", identifier, "the same words", ("True",)), ("True" if right else "False",))
    assert metric.result() == pytest.approx({"accuracy": 3 / 5, "accuracy/True": 3 / 5, "consistency": 1 / 3})
    by_text = Consistency()
    for number, (text, answer) in enumerate((("one", "True"), ("one", "False"), ("two", "True"))):
        by_text.add(Question("", number, text, ("True",)), (answer,))
    assert by_text.result()["consistency"] == 0.5
