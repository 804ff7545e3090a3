"""Composition: every score against one pair at a time, shares counted by hand, exclusions, and the command."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import caption, png_image

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.data.sample import BrokenSample
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.composition import Benchmark, evaluate_composition
from dualfuse.evaluation.composition_result import CaseResult, rows_of
from dualfuse.evaluation.runner import Plan
from dualfuse.prepare.benchmarks import open_benchmark
from dualfuse.prepare.sources.composition.builder import BenchmarkBuilder, BenchmarkImage, BenchmarkImages
from dualfuse.prepare.sources.source import Slice
from dualfuse.recipe import Recipe
from dualfuse.tasks.finetune.ranking import RankingConfig
from dualfuse.tasks.pretrain.pairs import PairsConfig

PLAN = Plan(batch_size=3, num_workers=0)


def untrained(recipe: Recipe, folder: Path) -> hub.LoadedModel:
    torch.manual_seed(3)
    task = recipe.build()
    for parameter in task.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return hub.load(hub.save(folder, task, recipe))


@pytest.fixture
def loaded(tiny: Recipe, tmp_path: Path) -> hub.LoadedModel:
    return untrained(tiny, tmp_path / "model")


def benchmark(cases: int = 8, true: int = 1) -> Benchmark:
    """Return cases of three captions, and pairs, that share images and captions."""
    builder = BenchmarkBuilder("tiny", lambda name: Slice(Path(name)))
    for number in range(cases):
        image = builder.image(str(number % 5), data=png_image(number % 5))
        texts = [caption(number % 7), caption(50 + number), caption(100 + number)]
        builder.captions(f"kind {number % 2}", image, texts, true=true, group=("near", "far", "on")[number % 3])
        if true == 1:
            other = builder.image(str((number + 1) % 5), data=png_image((number + 1) % 5))
            builder.pair("pairs", (image, other), (texts[0], texts[1]))
    return builder.build()


@torch.no_grad()
def naive_scores(model: hub.LoadedModel, image: bytes, text: str) -> dict[str, float]:
    """Return the scores of one pair, embedded and fused alone."""
    task, processor = model.task, model.processor
    pixels = processor.image(image, np.random.default_rng(0))[None]
    ids = torch.tensor(processor.text.encode(text).ids)[None]
    image_tokens = task.model.embed_image(pixels)
    text_tokens = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
    scores = {}
    if task.can_search:
        scores["dual"] = (task.image_features(image_tokens) * task.text_features(text_tokens)).sum()
    if task.can_match:
        scores["fused"] = task.match_logit(image_tokens, text_tokens)[0]
    if len(scores) == 2:
        scores["both"] = task.feature_heads[0].scale * scores["dual"] + scores["fused"]
    return {way: float(score) for way, score in scores.items()}


def naive_shares(model: hub.LoadedModel, made: Benchmark) -> dict[str, float]:
    """Count the correct cases by category and way, in loops over single pairs."""
    correct, score_of = defaultdict[str, list[bool]](list), cache(partial(naive_scores, model))
    assert made.samples is not None
    for case in made.cases:
        images = [made.samples[number].image for number in case.images]
        texts = [made.samples[number].texts[place] for number, place in case.captions]
        scores = [[score_of(image, text) for text in texts] for image in images]
        for way in scores[0][0]:
            score = [[each[way] for each in row] for row in scores]
            if len(images) == 1:
                won = all(good > bad for good in score[0][: case.true] for bad in score[0][case.true :])
                correct[f"{case.category}/{way}"].append(won)
            else:
                text = score[0][0] > score[0][1] and score[1][1] > score[1][0]
                image = score[0][0] > score[1][0] and score[1][1] > score[0][1]
                for name, won in (("text", text), ("image", image), ("group", text and image)):
                    correct[f"{case.category}/{name}/{way}"].append(won)
    return {name: sum(won) / len(won) for name, won in correct.items()}


def check_against_naive(model: hub.LoadedModel, made: Benchmark, ways: Sequence[str]) -> None:
    metrics = evaluate_composition(model.task, made, model.processor, PLAN).metrics
    assert {name.rpartition("/")[2] for name in metrics} == {*ways, "chance"}
    shares = naive_shares(model, made)
    assert {name: metrics[name] for name in shares} == pytest.approx(shares)
    assert len(shares) == len(ways) * len({name.rpartition("/")[0] for name in shares})


def test_shares_equal_those_of_single_pairs(loaded: hub.LoadedModel) -> None:
    check_against_naive(loaded, benchmark(), ("dual", "fused", "both"))


def test_two_true_captions_and_captions_alone(loaded: hub.LoadedModel) -> None:
    made = benchmark(true=2)
    check_against_naive(loaded, made, ("dual", "fused", "both"))
    metrics = evaluate_composition(loaded.task, made, loaded.processor, PLAN).metrics
    texts = [[made.samples[n].texts[place] for n, place in case.captions] for case in made.cases]  # type: ignore[index]
    won = []
    for triple in texts:
        with torch.no_grad():
            encoded = [torch.tensor(loaded.processor.text.encode(text).ids)[None] for text in triple]
            model, task = loaded.task.model, loaded.task
            first, second, false = (
                task.text_features(model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool)))[0] for ids in encoded
            )
        won.append(bool(first @ second > first @ false and first @ second > second @ false))
    assert metrics["all/text-only/dual"] == pytest.approx(sum(won) / len(won))
    assert metrics["all/text-only/chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("cfg", "ways"),
    [
        (PairsConfig(itm_weight=0.0), ("dual",)),
        (PairsConfig(itc_weight=0.0, negative_hardness=0.0), ("fused",)),
        (RankingConfig(), ("fused",)),
    ],
)
def test_ways_are_those_that_were_trained(tiny: Recipe, tmp_path: Path, cfg: object, ways: Sequence[str]) -> None:
    check_against_naive(untrained(replace(tiny, task=cfg), tmp_path / "model"), benchmark(4), ways)


def test_fused_score_of_listwise_matching_is_without_the_cosine(tiny: Recipe, tmp_path: Path) -> None:
    model = untrained(replace(tiny, task=PairsConfig(itm_loss="listwise")), tmp_path / "model")
    task, cosine = model.task, torch.tensor([0.1, 0.5])
    scale = task.feature_heads[0].scale.detach()  # type: ignore[attr-defined]
    log_odds = torch.tensor([1.0, -2.0])
    match = scale * (cosine - task.match_threshold.detach()) + log_odds  # type: ignore[union-attr, operator]
    fused = task.fused_score(cosine, match)
    assert (fused[0] - fused[1]).item() == pytest.approx(3.0, abs=1e-4)
    assert task.rerank_score(cosine, match) is match


def test_model_without_scores_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    neither = PairsConfig(itc_weight=0.0, itm_weight=0.0, negative_hardness=0.0)
    model = untrained(replace(tiny, task=neither), tmp_path / "model")
    with pytest.raises(DualfuseError, match="without ITC"):
        evaluate_composition(model.task, benchmark(2), model.processor, PLAN)


def test_rows_by_hand() -> None:
    """Three cases of relations, two of them about "on": 1 of 3 correct; the mean over relations is (1/2 + 0) / 2."""
    margins = [("on", 1.0), ("on", -1.0), ("under", 0.0)]
    relations = [CaseResult("0", "r", group, {"": {"dual": margin}}, {"": 0.5}) for group, margin in margins]
    other = CaseResult("3", "order", "", {"": {"dual": 2.0}}, {"": 0.2})
    rows = {row.name: row for row in rows_of([*relations, other])}
    assert list(rows) == ["r", "r/macro", "order", "all"]
    assert [rows[name].shares["dual"] for name in rows] == pytest.approx([1 / 3, 1 / 4, 1, 1 / 2])
    assert [rows[name].chance for name in rows] == pytest.approx([0.5, 0.5, 0.2, (3 * 0.5 + 0.2) / 4])
    assert rows["r/macro"].cases == "2 groups"


def test_cases_with_broken_images_stop_or_are_excluded(loaded: hub.LoadedModel) -> None:
    made = benchmark()
    assert isinstance(made.samples, BenchmarkImages)
    images = list(made.samples.images)
    images[2] = BenchmarkImage("2", b"broken", None, images[2].texts)
    broken = replace(made, samples=BenchmarkImages(images))
    with pytest.raises(BrokenSample, match="2: "):
        evaluate_composition(loaded.task, broken, loaded.processor, PLAN)
    result = evaluate_composition(loaded.task, broken, loaded.processor, replace(PLAN, exclude_broken=True))
    kept = replace(made, cases=tuple(case for case in made.cases if 2 not in case.images))
    whole = evaluate_composition(loaded.task, kept, loaded.processor, PLAN)
    assert result.metrics == pytest.approx(whole.metrics)
    assert [skipped.key for skipped in result.excluded] == ["2"]
    assert result.size.startswith(f"{len(kept.cases)} of 16 cases, 4 images")


def test_negated_queries_are_retrieved(loaded: hub.LoadedModel) -> None:
    images = [BenchmarkImage(str(n), png_image(n), None, (caption(n), caption(20 + n))) for n in range(12)]
    made = Benchmark("retrieval", galleries={"negated": BenchmarkImages(images)})
    result = evaluate_composition(loaded.task, made, loaded.processor, replace(PLAN, rerank=3))
    assert set(result.metrics) == {f"negated/R@{k}/{way}" for k in (1, 5, 10) for way in ("dual", "both")}
    assert "negated: 12 images, 24 texts" in result.lines()[-1]


def test_command(loaded: hub.LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = str(tmp_path / "model"), tmp_path / "crepe"
    data.mkdir()
    entries = [{"filename": f"{n}.png", "caption": caption(n), "negative_caption": caption(n + 9)} for n in range(3)]
    (data / "swap_obj.json").write_text(json.dumps({str(n): entry for n, entry in enumerate(entries)}))
    (data / "images").mkdir()
    for number in range(2):
        (data / "images" / f"{number}.png").write_bytes(png_image(number))
    words = ["evaluate", model, str(data), "--benchmark", "sugarcrepe", "--num-workers", "0"]
    assert cli.main(words) == 2
    assert "1 of 3 images of SugarCrepe are missing" in capsys.readouterr().err
    out, answers = tmp_path / "scores.json", tmp_path / "cases.csv"
    words += ["--exclude-broken", "--out", str(out), "--answers", str(answers)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["accuracy,", "%", "cases", "chance", "dual", "fused", "both"]
    assert "excluded 2.png" in printed
    metrics = json.loads(out.read_text())
    assert metrics["swap_obj/chance"] == 0.5
    with answers.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["swap_obj/0", "swap_obj/1"]
    assert sum(float(row["dual"]) > 0 for row in rows) / 2 == metrics["swap_obj/dual"]
    assert cli.main(words) == 2  # the files exist
    assert open_benchmark("sugarcrepe", data, allow_missing=True).name == "SugarCrepe"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--benchmark", "scenes", "--zero-shot", "a, b"], "--zero-shot"),
        (["data", "--benchmark", "scenes"], "omit data"),
        (["--benchmark", "aro"], "no DATA"),
        ([], "no DATA"),
        (["data", "--images", "folder"], "--benchmark NAME"),
        (["--benchmark", "scenes", "--cases", "0"], "1 or more"),
        (["--benchmark", "scenes", "--cases", "1", "--answers", "cases.json"], ".jsonl or .csv"),
        (["data", "--benchmark", "vsr"], "winoground"),
    ],
)
def test_options_that_contradict(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "model", *words]) == 2
    assert reason in capsys.readouterr().err
