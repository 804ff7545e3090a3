"""Calibration of a model on shards: its pairs, what a model folder keeps, and what search and match do with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import dual_folders
import pytest
import tiny
import torch

from dualfuse import hub
from dualfuse.card import card
from dualfuse.checksums import differing_files, unwritten_files
from dualfuse.convert.load import load
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.calibration import calibrate_model, calibration_scores
from dualfuse.evaluation.notes import CALIBRATION, RERANKING, Reranking, write_note
from dualfuse.evaluation.runner import Plan, evaluate, open_data
from dualfuse.metrics.calibration import Calibration, Mix, Platt, ScoreCalibration
from dualfuse.report.reliability import save_reliability
from dualfuse.search.index import Index

PLAN = Plan(batch_size=8, num_workers=0, all_metrics=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fused model with random weights, and shards of 24 images, four of which come twice."""
    folder = tmp_path_factory.mktemp("model")
    recipe = tiny.recipe(folder, images=24)
    torch.manual_seed(0)
    task = recipe.task.build(recipe.model.build())
    task.requires_grad_(False)
    return hub.save(folder / "model", task, recipe), str(folder / "data" / "train-*.tar")


@torch.inference_mode()
def test_pairs_are_right_and_wrong_as_the_samples_say(made: tuple[Path, str]) -> None:
    model, data = hub.load(made[0]), made[1]
    opened = open_data(model, data)
    scores = calibration_scores(model.task, opened, PLAN, mix=Mix(nearest=5))
    samples = [opened.samples[number] for number in range(24)]
    texts = [(n, text) for n, sample in enumerate(samples) for text in sample.texts]
    images, words = model.encode_image([s.image for s in samples]), model.encode_text([text for _, text in texts])
    right = torch.tensor([float(words[row] @ images[n]) for row, (n, _) in enumerate(texts)])
    torch.testing.assert_close(scores.cosine.pairs[:, 0], right, atol=1e-5, rtol=0)
    for row, (number, text) in enumerate(texts):
        order = sorted(range(24), key=lambda n: -float(words[row] @ images[n]))[:5]
        expected = {n: samples[n].image == samples[number].image or text in samples[n].texts for n in order}
        assert scores.is_right[row].sum().item() == sum(expected.values())
        wrong = [float(words[row] @ images[n]) for n in order if not expected[n]]
        assert min(abs(float(scores.cosine.pairs[row, 2]) - each) for each in wrong) < 1e-5
    assert scores.match is not None
    expected_match = model.task.rerank_score(
        scores.cosine.pairs[:3, 0], torch.logit(torch.tensor(_matches(model, samples, texts[:3])))
    )
    torch.testing.assert_close(scores.match.pairs[:3, 0], expected_match, atol=1e-3, rtol=1e-3)


def _matches(model: hub.LoadedModel, samples: list, texts: list) -> list[float]:
    return model.match([samples[n].image for n, _ in texts], [text for _, text in texts]).tolist()


@torch.inference_mode()
def test_a_calibrated_folder_loads_with_probabilities(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, data = Path(shutil.copytree(made[0], tmp_path / "model")), made[1]
    model = hub.load(folder)
    assert model.probability(0.3) is None
    calibration = calibrate_model(model, data, PLAN)
    assert calibration == calibrate_model(hub.load(folder), data, PLAN)  # the same again
    write_note(folder, CALIBRATION, calibration)
    assert not differing_files(folder) and not unwritten_files(folder)
    loaded = hub.load(folder)
    assert loaded.task.calibration == calibration and calibration.match is not None
    sample = open_data(loaded, data).samples[0]
    [cosine] = loaded.similarity(sample.image, sample.texts[0])[0].tolist()
    raw = hub.load(made[0]).match(sample.image, sample.texts[0])[0]
    match = float(torch.logit(torch.tensor(raw)))
    score = float(loaded.task.rerank_score(torch.tensor([cosine]), torch.tensor([match])))
    expected = calibration.match.pair.probability(score)
    assert loaded.match(sample.image, sample.texts[0])[0] == pytest.approx(expected, abs=1e-3)
    assert loaded.probability(cosine, match) == pytest.approx(expected, abs=1e-3)
    result = evaluate(loaded, data, PLAN)
    assert result.metrics["calibration/match/ece_pair"] == pytest.approx(calibration.match.pair_error, abs=1e-5)
    assert result.metrics["calibration/cosine/kept_right"] >= 0.93
    save_reliability(result.reliability, tmp_path / "reliability.png")
    assert "expected calibration error" in card(folder)


def test_search_cuts_by_probability_and_reranks_by_default(made: tuple[Path, str], tmp_path: Path) -> None:
    model = hub.load(made[0])
    index = Index.build(model, made[1])
    with pytest.raises(DualfuseError, match="--calibrate"):
        index.search("a red cat", min_probability=0.5)
    assert index.search("a red cat")[0].probability is None and index.default_rerank == 0
    calibration = calibrate_model(model, made[1], PLAN)
    cosines = sorted((hit.cosine for hit in index.search("a red cat", top=24)), reverse=True)
    middle = (cosines[3] + cosines[4]) / 2
    sharp = replace(calibration.cosine, hit=Platt(200.0, -200.0 * middle))  # 0.5 between the fourth and the fifth
    model.task.calibration = Calibration(sharp, calibration.match)
    assert len(index.search("a red cat", top=24, min_probability=0.5)) == 4
    assert len(index.search("a red cat", top=24, min_probability=1.0)) == 0
    model.task.reranking = Reranking(6, (0.3, 0.5, 0.6), (0.3, 0.6, 0.7))
    assert index.default_rerank == 6
    model.task.reranking = Reranking(6, (0.3, 0.5, 0.6), (0.2, 0.7, 0.8))
    assert index.default_rerank == 0


def test_a_damaged_note_is_named(made: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "model"))
    write_note(folder, RERANKING, Reranking(16, (0.1, 0.2, 0.3), (0.2, 0.3, 0.4)))
    content = json.loads((folder / RERANKING).read_text())
    (folder / RERANKING).write_text(json.dumps({**content, "candidates": "many"}))
    with pytest.raises(DualfuseError, match=RERANKING):
        hub.load(folder)


def test_metrics_without_reranking_leave_no_note() -> None:
    metrics = {f"text_to_image/R@{k}": 0.1 for k in (1, 5, 10)}
    assert Reranking.of(metrics, 16) is None
    metrics |= {f"text_to_image/reranked/R@{k}": 0.2 for k in (1, 5, 10)}
    note = Reranking.of(metrics, 16)
    assert note is not None and note.helps


@torch.inference_mode()
def test_a_third_party_folder_can_be_calibrated(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    dual_folders.write_clip(folder)
    platt = Platt(4.0, -1.0)
    calibration = Calibration(ScoreCalibration(platt, platt, (0.1, 0.9)))
    write_note(folder, CALIBRATION, calibration)
    model = load(folder)
    assert model.task.calibration == calibration
    [cosine] = model.similarity(tiny.png_image(0), "a boat")[0].tolist()
    assert model.match(tiny.png_image(0), "a boat")[0] == pytest.approx(platt.probability(cosine), abs=1e-5)
