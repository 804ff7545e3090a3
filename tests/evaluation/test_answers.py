"""Classification tasks end to end: training, evaluation on shards, and files of predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import BRIDGETOWER as TINY_TOWERS
from tiny import MODEL, lines, png_image, shards, tokenizer

from dualfuse import hub
from dualfuse.data.sample import BrokenSample, Sample
from dualfuse.data.shards.shards import Shards
from dualfuse.evaluation.predictions import PredictedAnswer, write_predictions
from dualfuse.evaluation.runner import EvaluationData, Plan
from dualfuse.models.base import ModelConfig
from dualfuse.models.vlmo import InitConfig
from dualfuse.recipe import Data, Optim, Recipe, Run
from dualfuse.tasks.finetune.classification import Classification
from dualfuse.tasks.finetune.entailment import EntailmentConfig
from dualfuse.tasks.finetune.nlvr2 import NLVR2Config
from dualfuse.tasks.finetune.questions import QuestionConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.training.loop import train

VLMO = replace(MODEL, patch_size=16, image_slots=2, drop_path=0.0, init=InitConfig(std=0.15, layer_scale=0.0))
BRIDGETOWER = replace(TINY_TOWERS, image_slots=2, init_std=0.15)
TASKS: dict[str, tuple[ModelConfig, QuestionConfig]] = {
    "vqa": (VLMO, VQAConfig(answers=("cat", "dog", "fish"))),
    "nlvr2": (replace(BRIDGETOWER, bridge="none"), NLVR2Config()),
    "entailment": (BRIDGETOWER, EntailmentConfig(labels=("no", "maybe", "yes"))),
}
PLAN = Plan(batch_size=5, num_workers=0)
ANIMALS, LABELS = ("cat", "dog", "fish"), ("no", "maybe", "yes")


def content(number: int = 12) -> list[Sample]:
    """The text determines the answer, so that a few steps suffice."""
    return [
        Sample(
            f"{n:03d}",
            png_image(n),
            (f"the {ANIMALS[n % 3]} runs",),
            {"id": 100 + n, "answers": [ANIMALS[n % 3]] * 7 + ["a tree"] * 3, "answer_type": ("small", "big")[n % 2]}
            | {"label": LABELS[n % 3]},
            other_images=(png_image(n + 1),),
        )
        for n in range(number)
    ]


def labelled(name: str, samples: list[Sample]) -> list[Sample]:
    """Replace the labels by NLVR2's."""
    labels = {label: str(label == "yes") for label in LABELS}
    if name != "nlvr2":
        return samples
    return [replace(sample, meta={**sample.meta, "label": labels[str(sample.meta["label"])]}) for sample in samples]


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """Return a name, the folder of its run, and its shards."""
    folder = tmp_path_factory.mktemp(request.param)
    model, task = TASKS[request.param]
    data = shards(folder / "data", labelled(request.param, content()))
    recipe = Recipe(
        name="tiny",
        model=model,
        task=task,
        data=Data(
            train=(data,),
            image_size=(32, 32),
            augment=None,
            text_length=12,
            tokenizer=tokenizer(folder / "words"),
            batch_size=12,
            num_workers=0,
        ),
        optim=Optim(lr=4e-3, warmup=2, grad_clip_norm=1.0),
        run=Run(steps=40, save_every=40, log_every=5),
    )
    train((recipe,), folder / "run")
    return request.param, folder / "run", data


def test_trained_model_answers_its_training_set(trained: tuple[str, Path, str]) -> None:
    name, run, data = trained
    log = lines(run)
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    loaded = hub.load(run / "final")
    assert isinstance(loaded.task, Classification)
    found = loaded.task.evaluate(EvaluationData(Shards.open(data), loaded.processor), PLAN)
    assert (found.size, len(found.predictions), found.excluded) == ("12 questions, 12 of them labelled", 12, ())
    assert found.metrics["accuracy"] > 0.9
    assert [answer.id for answer in found.predictions] == list(range(100, 112))
    extra = {"vqa": "accuracy/small", "nlvr2": "consistency", "entailment": "accuracy/maybe"}
    assert extra[name] in found.metrics
    others = loaded.task.evaluate(
        EvaluationData(Shards.open(data), loaded.processor), Plan(batch_size=12, num_workers=0)
    )
    assert [answer.answer for answer in others.predictions] == [answer.answer for answer in found.predictions]


def test_metrics_follow_the_labels(trained: tuple[str, Path, str], tmp_path: Path) -> None:
    """With wrong labels for a third of the samples the accuracy falls by a third."""
    name, run, _ = trained
    loaded = hub.load(run / "final")
    samples = labelled(name, content(6))
    wrong = [
        replace(
            sample, meta={**sample.meta, "answers": ["unheard of"] * 10, "label": "no" if name != "nlvr2" else "False"}
        )
        if sample.meta["id"] in (102, 105)  # they are fish, "yes", "True"
        else sample
        for sample in samples
    ]
    found = loaded.task.evaluate(EvaluationData(Shards.open(shards(tmp_path, wrong)), loaded.processor), PLAN)
    assert found.metrics["accuracy"] == pytest.approx(4 / 6)
    assert found.size == "6 questions, 6 of them labelled"


def test_unlabelled_set_has_predictions_and_no_metrics(trained: tuple[str, Path, str], tmp_path: Path) -> None:
    _, run, _ = trained
    loaded = hub.load(run / "final")
    unknown = [replace(sample, meta={"id": sample.meta["id"]}) for sample in content(3)]
    found = loaded.task.evaluate(EvaluationData(Shards.open(shards(tmp_path, unknown)), loaded.processor), PLAN)
    assert (found.metrics, found.size, len(found.predictions)) == ({}, "3 questions, 0 of them labelled", 3)
    assert all(0 < answer.probability <= 1 for answer in found.predictions)


def test_broken_samples_stop_or_are_excluded(trained: tuple[str, Path, str], tmp_path: Path) -> None:
    _, run, _ = trained
    loaded = hub.load(run / "final")
    broken = [replace(sample, texts=()) if n == 1 else sample for n, sample in enumerate(content(3))]
    data = Shards.open(shards(tmp_path, [replace(sample, meta={}) for sample in broken]))
    with pytest.raises(BrokenSample, match="train-00000/001: it has 0 texts"):
        loaded.task.evaluate(EvaluationData(data, loaded.processor), PLAN)
    found = loaded.task.evaluate(EvaluationData(data, loaded.processor), replace(PLAN, exclude_broken=True))
    assert [skipped.key for skipped in found.excluded] == ["train-00000/001"]
    assert [answer.id for answer in found.predictions] == ["train-00000/000", "train-00000/002"]
    loaded.task.train()
    with pytest.raises(ValueError, match=r"eval\(\)"):
        loaded.task.evaluate(EvaluationData(data, loaded.processor), PLAN)


ANSWERS = (PredictedAnswer("a/1", 7, "yes", 0.5), PredictedAnswer("a/2", 8, 'a "dog", two', 0.25))


def test_predictions_are_written_in_every_format(tmp_path: Path) -> None:
    files = {ending: tmp_path / f"answers{ending}" for ending in (".json", ".csv", ".jsonl")}
    for file in files.values():
        write_predictions(ANSWERS, file)
    assert json.loads(files[".json"].read_text()) == [
        {"question_id": 7, "answer": "yes"},
        {"question_id": 8, "answer": 'a "dog", two'},
    ]
    assert files[".csv"].read_text() == '7,yes\n8,"a ""dog"", two"\n'
    rows = [json.loads(line) for line in files[".jsonl"].read_text().splitlines()]
    assert rows[0] == {"key": "a/1", "id": 7, "answer": "yes", "probability": 0.5} | {
        "target": [],
        "correct": None,
        "loss": None,
    }


def test_invalid_submission_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="question ids are numbers"):
        write_predictions([replace(ANSWERS[0], id="seven")], tmp_path / "answers.json")
    for name in ("answers.json", "answers.csv"):
        with pytest.raises(ValueError, match="more than once, such as 7"):
            write_predictions([ANSWERS[0], ANSWERS[0]], tmp_path / name)
    with pytest.raises(ValueError, match="should end in"):
        write_predictions(ANSWERS, tmp_path / "answers.txt")
    assert not list(tmp_path.iterdir())
