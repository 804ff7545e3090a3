"""Results of single samples: ranks and best wrong candidates of retrieval, losses and accuracies of other tasks."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import changed, samples, shards
from torch.nn import functional as F

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.predictions import RetrievedRank, SampleLoss, write_predictions
from dualfuse.evaluation.runner import Plan, evaluate
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.finetune.vqa import VQAConfig
from dualfuse.tasks.pretrain.masked_text import MaskedTextConfig

PLAN = Plan(batch_size=5, num_workers=0, answers=True)


def untrained(recipe: Recipe, folder: Path) -> hub.LoadedModel:
    torch.manual_seed(3)
    task = recipe.build()
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return hub.load(hub.save(folder, task, recipe))


@torch.no_grad()
def test_ranks_and_best_wrong_candidates_of_the_dual_encoder(tiny: Recipe, tmp_path: Path) -> None:
    """Against all cosines at once, with loops."""
    model, data = untrained(tiny, tmp_path / "model"), shards(tmp_path, samples(9), "test")
    result = evaluate(model, data, replace(PLAN, rerank=4))
    found = {each.query: each for each in result.predictions if isinstance(each, RetrievedRank)}
    names, texts, image, text = [], [], [], []
    for sample in Shards.open(data):
        names.append(sample.key)
        pixels = model.processor.image(sample.image, None)[None]  # type: ignore[arg-type]
        image.append(model.task.image_features(model.task.model.embed_image(pixels))[0])
        for number, caption in enumerate(sample.texts):
            texts.append((f"{sample.key}#{number}", sample.key))
            ids = torch.tensor(model.processor.text.encode(caption).ids)[None]
            text.append(
                model.task.text_features(model.task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
            )
    assert len(found) == len(names) + len(texts)
    cosines = (torch.stack(text) @ torch.stack(image).T).tolist()
    for (query, own), row in zip(texts, cosines, strict=True):
        target = row[names.index(own)]
        wrong = {name: value for name, value in zip(names, row, strict=True) if name != own}
        each = found[query]
        assert each.rank == 1 + sum(value >= target - 1e-6 for value in wrong.values())
        assert (each.direction, each.best_wrong) == ("text_to_image", max(wrong, key=wrong.__getitem__))
        assert each.score == pytest.approx(target, abs=1e-5)
        assert each.best_wrong_score == pytest.approx(max(wrong.values()), abs=1e-5)
        assert each.reranked_best_wrong in wrong
    for number, name in enumerate(names):
        column = {query: row[number] for (query, own), row in zip(texts, cosines, strict=True) if own != name}
        assert found[name].best_wrong == max(column, key=column.__getitem__)
    for direction in ("text_to_image", "image_to_text"):
        each = [one for one in found.values() if one.direction == direction]
        share = sum(one.rank == 1 for one in each) / len(each)
        reranked = sum(one.reranked_rank == 1 for one in each) / len(each)
        assert result.metrics[f"{direction}/R@1"] == pytest.approx(share)
        assert result.metrics[f"{direction}/reranked/R@1"] == pytest.approx(reranked)
    assert not evaluate(model, data, replace(PLAN, answers=False)).predictions


def test_ranks_of_the_fusion_encoder(tiny: Recipe, tmp_path: Path) -> None:
    model = untrained(replace(tiny, task=RankingConfig()), tmp_path / "model")
    result = evaluate(model, shards(tmp_path, samples(6), "test"), PLAN)
    each = [one for one in result.predictions if isinstance(one, RetrievedRank) and one.direction == "text_to_image"]
    assert len({one.query for one in each}) == len(each) == sum(len(sample.texts) for sample in samples(6))
    assert result.metrics["text_to_image/R@1"] == pytest.approx(sum(one.rank == 1 for one in each) / len(each))
    for one in each:
        assert one.best_wrong != one.query.partition("#")[0] and one.best_wrong_score is not None
        assert (one.rank == 1) == (one.score > one.best_wrong_score)


def test_losses_and_accuracies_of_answers(tiny: Recipe, tmp_path: Path) -> None:
    answers = ("cat", "dog", "fish")
    model = untrained(replace(tiny, task=VQAConfig(answers=answers)), tmp_path / "model")
    labelled = [
        replace(sample, texts=sample.texts[:1], meta={"answers": [answers[n % 3]] * 7 + ["a tree"] * 3} if n else {})
        for n, sample in enumerate(samples(7))
    ]
    result = evaluate(model, data := shards(tmp_path, labelled, "test"), PLAN)
    first, *others = result.predictions
    assert (first.target, first.correct, first.loss) == ((), None, None)  # type: ignore[union-attr]
    for n, each in enumerate(others, start=1):
        example = model.task.cfg.read(Shards.open(data)[n], model.processor, None)
        with torch.no_grad():
            logits = model.task.logits(model.task.cfg.collate([example]))[0]  # type: ignore[operator]
        expected = F.binary_cross_entropy_with_logits(logits, example["target"], reduction="sum")
        assert each.loss == pytest.approx(float(expected), rel=1e-4)  # type: ignore[union-attr]
        assert each.correct == float(each.answer == answers[n % 3])  # type: ignore[union-attr]
    mean = sum(each.correct for each in others) / 6  # type: ignore[union-attr, misc]
    assert result.metrics["accuracy"] == pytest.approx(mean)


def test_losses_of_texts(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("the red cat runs\na big dog sleeps\n" * 20)
    model = untrained(replace(tiny, task=MaskedTextConfig()), tmp_path / "model")
    result = evaluate(model, str(tmp_path / "lines.txt"), PLAN)
    losses = [each.loss for each in result.predictions if isinstance(each, SampleLoss)]
    assert len(losses) > 1 and all(map(math.isfinite, losses))
    together = evaluate(model, str(tmp_path / "lines.txt"), replace(PLAN, answers=False))
    assert result.metrics["mlm/loss"] == pytest.approx(together.metrics["mlm/loss"], rel=1e-4)


def test_files_of_ranks(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained(tiny, tmp_path / "model")
    data = shards(tmp_path, [replace(sample, key=f"={sample.key}") for sample in samples(6)], "test")
    words = ["evaluate", str(tmp_path / "model"), data, "--num-workers", "0", "--rerank", "0", "--answers"]
    assert cli.main([*words, str(tmp_path / "a.csv")]) == 0
    assert cli.main([*words, str(tmp_path / "a.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == [line["rank"] for line in lines]
    assert list(rows[0]) == list(lines[0]) and lines[0]["reranked_rank"] is None
    assert cli.main([*words, str(tmp_path / "a.json")]) == 2
    assert "should end in .jsonl or .csv" in capsys.readouterr().err


def test_a_single_image_has_no_wrong_candidate(tiny: Recipe, tmp_path: Path) -> None:
    model = untrained(tiny, tmp_path / "model")
    for each in evaluate(model, shards(tmp_path, samples(1), "test"), replace(PLAN, rerank=2)).predictions:
        assert isinstance(each, RetrievedRank) and (each.rank, each.best_wrong, each.best_wrong_score) == (1, "", None)
    with pytest.raises(DualfuseError, match="no results"):
        write_predictions([], tmp_path / "a.csv")
    assert changed(tiny, itc_weight=0.0).build().has_sample_results is False
