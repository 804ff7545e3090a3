from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import Page, few_pictures, needs_nothing, text_of

from dualfuse import hub
from dualfuse.cli.demo import print_results
from dualfuse.data.shards.shards import Shards
from dualfuse.errors import DualfuseError
from dualfuse.evaluation.retrieval import evaluate_retrieval
from dualfuse.evaluation.runner import EvaluationData
from dualfuse.recipe import Recipe, Run
from dualfuse.recipes import small_pairs
from dualfuse.report import figures
from dualfuse.report.curves import Curve, History, joined, merged
from dualfuse.report.demo import evaluate, run, wording
from dualfuse.report.demo.evaluate import EACH, draw
from dualfuse.report.demo.page import demo_page
from dualfuse.report.demo.results import DemoResults
from dualfuse.report.figures import Chart, Line
from dualfuse.report.run_page import report
from dualfuse.training.run_log import SkippedLog


def shrunk(recipe: Recipe) -> Recipe:
    return replace(
        recipe,
        model=replace(recipe.model, width=32, depth=2, vl_expert_start=1, image_size=(32, 32)),
        data=replace(recipe.data, image_size=(32, 32), batch_size=8, num_workers=0),
        run=Run(steps=4, log_every=1, eval_every=2, save_every=0),
    )


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> run.Setup:
    """A demo of a few steps, finished."""
    folder = tmp_path_factory.mktemp("demo")
    joint, control = (tuple(map(shrunk, recipes)) for recipes in (small_pairs.demo(), small_pairs.demo_itc()))
    setup = run.Setup(few_pictures(folder / "source"), folder / "out", 3, joint, control)
    run.build(setup)
    return setup


@pytest.fixture(scope="module")
def results(setup: run.Setup) -> DemoResults:
    return DemoResults.load(setup.out)


@torch.no_grad()
def scrambled(setup: run.Setup) -> hub.LoadedModel:
    """Return the demo's model with weights whose answers differ from pair to pair."""
    joint = hub.load(setup.out / "pairs" / "final")
    torch.manual_seed(0)
    for parameter in joint.task.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    joint.task.itm_head.weight.mul_(100)
    return joint


def test_page_loads_nothing(setup: run.Setup, results: DemoResults) -> None:
    html = (setup.out / "report.html").read_text(encoding="utf-8")
    page = needs_nothing(html)
    assert page.seen.count("svg") == 6 + 2  # three losses and validation recall, over steps and over time
    assert html == demo_page(results)


def test_page_shows_the_results(setup: run.Setup, results: DemoResults) -> None:
    found = results.retrieval
    html = demo_page(results)
    for way in ("text_to_image", "image_to_text"):
        rows = [getattr(row, way) for row in (found.chance, found.itc_only, found.joint, found.reranked)]
        table = html.split('<table class="recall">')[1 + (way == "image_to_text")].split("</table>")[0]
        shown = re.findall(r">([\d.]+)%<", table)
        assert shown == [f"{100 * share:.1f}" for row in rows for share in row]
    for _, value in results.fusion:
        assert f"{100 * value:.1f}%" in text_of(html)
    assert dict(results.fusion).keys() >= {"itm/hard_negative", "mlm/accuracy"}
    joint = hub.load(setup.out / "pairs" / "final")
    test = Shards.open(setup.out / "data" / "test-*.tar")
    again = evaluate_retrieval(joint.task, EvaluationData(test, joint.processor), run.PLAN).metrics
    assert found.joint.text_to_image == tuple(again[f"text_to_image/R@{k}"] for k in (1, 5, 10))
    assert found.reranked.image_to_text == tuple(again[f"image_to_text/reranked/R@{k}"] for k in (1, 5, 10))
    assert (found.images, found.texts) == (20, sum(len(sample.texts) for sample in test))
    assert dict(results.parts)["train pairs"] == pytest.approx(results.joint[1].seconds, abs=0.01)


@torch.inference_mode()
def test_example_queries_equal_a_naive_search(setup: run.Setup) -> None:
    """Every query, searched and re-ranked again one pair at a time, by weights that disagree about the order."""
    joint = scrambled(setup)
    task, processor = joint.task, joint.processor
    test = Shards.open(setup.out / "data" / "test-*.tar")
    drawn = evaluate.queries(joint, test, run.PLAN)
    images = [task.model.embed_image(processor.image(s.image, np.random.default_rng())[None]) for s in test]
    for query in drawn:
        assert query.caption in test[query.target].texts
        ids = torch.from_numpy(processor.text.encode(query.caption).ids)[None]
        text = task.model.embed_text(ids, torch.ones_like(ids, dtype=torch.bool))
        cosine = torch.cat([task.image_features(image) @ task.text_features(text)[0] for image in images])
        both = task.rerank_score(cosine, torch.cat([task.match_logit(image, text) for image in images]))
        considered = cosine.topk(run.RERANK).indices
        assert query.rank == int((cosine > cosine[query.target]).sum())
        beaten = int((both[considered] > both[query.target]).sum())
        assert query.reranked_rank == (beaten if query.target in considered else query.rank)
        for answers, scores in ((query.nearest, cosine), (query.reranked, both)):
            best = scores[considered].sort(descending=True).values[:5].tolist()
            assert [score for _, score in answers] == pytest.approx(best, abs=6e-4)
            assert [scores[image].item() for image, _ in answers] == pytest.approx(best, abs=1e-4)
    assert any(query.nearest[0][0] != query.reranked[0][0] for query in drawn)


def test_successes_and_failures_are_labelled(results: DemoResults) -> None:
    first = [query.reranked_rank == 0 for query in results.queries]
    assert first == sorted(first, reverse=True) and len(first) == 2 * EACH
    html = demo_page(results)
    assert html.count('badge hit">found: ') == sum(first)
    assert html.count("its image: ") == len(first) - sum(first) >= 4
    for card in html.split("<article")[1 : 1 + len(first)]:
        assert card.count('class="right"') >= 1  # the image that is looked for, and where it was found


@torch.inference_mode()
def test_masked_words_equal_a_naive_prediction(setup: run.Setup) -> None:
    joint = scrambled(setup)
    task, processor = joint.task, joint.processor
    test = Shards.open(setup.out / "data" / "test-*.tar")
    found = evaluate.masked_words(joint, test)
    assert found
    for example in found:
        before, after = example.caption.split("[MASK]")
        ids = processor.text.encode(before + example.word + after).ids
        place = len(processor.text.encode(before).ids) - 1
        assert processor.text.decode(ids[place : place + 1]) == example.word
        ids[place] = processor.text.mask_id
        words = task.model.embed_text(torch.from_numpy(ids)[None], torch.ones(1, len(ids), dtype=torch.bool))
        pixels = processor.image(test[example.image].image, np.random.default_rng())
        states = task.model.fuse(task.model.embed_image(pixels[None]), words).text
        likely = task.mlm_head(states[0, place]).softmax(0).sort(descending=True)
        assert [probability for _, probability in example.guesses] == pytest.approx(
            likely.values[:3].tolist(), abs=1e-4
        )
        assert example.guesses[0][0] == processor.text.decode([int(likely.indices[0])])


def test_finished_parts_are_skipped(setup: run.Setup, results: DemoResults) -> None:
    models = [setup.out / name / "final" / "model.safetensors" for name in ("itc", "pairs", "itc-only")]
    before = [path.stat().st_mtime_ns for path in (*models, setup.out / "results.json")]
    assert run.build(setup) == results
    assert [path.stat().st_mtime_ns for path in (*models, setup.out / "results.json")] == before
    with pytest.raises(ValueError, match="another recipe"):
        run.build(replace(setup, seed=4))


def test_without_a_control_nothing_is_compared(setup: run.Setup, results: DemoResults) -> None:
    alone = replace(results, control=(), retrieval=replace(results.retrieval, itc_only=None))
    html = demo_page(alone)
    needs_nothing(html)
    assert "ITC only</th>" not in html and "control" not in text_of(html).replace("--control", "")
    rebuilt = run.build(replace(setup, control=()))
    assert rebuilt.retrieval == alone.retrieval and not rebuilt.control
    assert run.build(setup).retrieval == results.retrieval


def test_images_are_exported(setup: run.Setup) -> None:
    test = Shards.open(setup.out / "data" / "test-*.tar")
    files = sorted((setup.out / "images").iterdir())
    assert [file.read_bytes() for file in files] == [sample.image for sample in test]
    assert (setup.out / "ATTRIBUTION.txt").read_text() == "those who drew them\n"


def test_command_prints_the_results(setup: run.Setup, results: DemoResults, capsys: pytest.CaptureFixture[str]) -> None:
    print_results(results, setup.out)
    said = capsys.readouterr().out
    assert f"{100 * results.retrieval.reranked.text_to_image[0]:.1f}%" in said
    assert f'dualfuse search {setup.out / "pairs" / "final"} {setup.out / "images"} "flag of Jamaica"' in said


def test_report_of_a_run(setup: run.Setup, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(setup.out / "pairs", run)
    SkippedLog(run, 0)
    html = report(run).read_text(encoding="utf-8")
    needs_nothing(html)
    assert "None: every sample was readable" in html and "of 4 steps, finished" in html
    assert "task.negatives_per_pair" in html and "dualfuse.tasks.pretrain.pairs:PairsConfig" in html
    ledger = SkippedLog(run, 4)
    for number in range(12):
        ledger.append(4, f"train/{number}", "it is <broken>", "train/0")
    html = report(run).read_text(encoding="utf-8")
    needs_nothing(html)
    assert "it is &lt;broken&gt;" in html and "12 times" in html


def test_report_of_a_run_shows_example_queries(setup: run.Setup, tmp_path: Path) -> None:
    """Texts of the six validation images; without the data the page says so, without validation it has no section."""
    folder = tmp_path / "run"
    shutil.copytree(setup.out / "pairs", folder)
    html = report(folder).read_text(encoding="utf-8")
    needs_nothing(html)
    section = html.split("<h2>Example queries</h2>")[1].split("</section>")[0]
    validation = Shards.open(setup.out / "data" / "val-*.tar")
    joint = hub.load(setup.out / "pairs" / "final")
    cosines = joint.similarity([sample.image for sample in validation], [s.texts[0] for s in validation])
    for number, sample in enumerate(validation):
        if len(sample.texts) > 1 or f"<b>{sample.texts[0]}</b>" not in section:
            continue
        card = section.split(f"<b>{sample.texts[0]}</b>")[1].split("</article>")[0]
        assert f"rank {1 + int((cosines[:, number] > cosines[number, number]).sum())}<" in card
        assert f"<span>{np.sort(cosines[:, number])[-1]:.3f}</span>" in card
    assert 2 <= section.count("<article") <= 2 * EACH and "image/jpeg" in section
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["data"]["validation"] = str(tmp_path / "deleted-*.tar")
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert "deleted-*.tar" in report(folder).read_text(encoding="utf-8").split("<h2>Example queries</h2>")[1][:600]
    recipe["data"]["validation"] = ""
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert "Example queries" not in report(folder).read_text(encoding="utf-8")


def test_report_of_the_demo_needs_its_results_only(setup: run.Setup, tmp_path: Path) -> None:
    shutil.copyfile(setup.out / "results.json", tmp_path / "results.json")
    assert report(tmp_path).read_bytes() == (setup.out / "report.html").read_bytes()
    (tmp_path / "results.json").write_text(json.dumps({"is": "dualfuse.report.demo.results:DemoResults", "seed": 1}))
    with pytest.raises(ValueError, match="delete it and rerun"):
        report(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not the folder of a run \(it has no recipe.json\); give"):
        report(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match=r"it has several: give .*one"):
        report(tmp_path)


def test_missing_images_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "EXAMPLES", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="clone the repository"):
        run.demo(tmp_path / "out")


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"'.\[plots\]'"):
        figures.draw(Chart((), "steps"))


def test_chance_equals_the_mean_of_all_orders() -> None:
    """All orders of four texts, of which the second image has two."""
    counts, owner = (1, 2, 1), (0, 1, 1, 2)
    orders = list(itertools.permutations(range(4)))
    expected = [np.mean([owner[order[0]] == image for order in orders]) for image in range(3)]
    found = evaluate.chance(counts)
    assert found.image_to_text[0] == pytest.approx(np.mean(expected))
    assert found.text_to_image == pytest.approx((1 / 3, 1, 1))
    missed = np.prod([(38 - drawn) / (40 - drawn) for drawn in range(5)])  # 38 of 40 texts are wrong
    assert evaluate.chance([2] * 20).image_to_text[1] == pytest.approx(1 - missed)


def test_examples_are_drawn_from_successes_and_failures() -> None:
    rng = np.random.default_rng(0)
    is_first = np.arange(40) % 4 == 0
    drawn = draw(is_first, rng)
    assert [bool(is_first[number]) for number in drawn] == [True] * EACH + [False] * EACH
    assert len(set(drawn)) == 2 * EACH
    assert sum(bool(is_first[n]) for n in draw(is_first, rng)) == EACH
    few = np.arange(40) < 2
    assert sum(bool(few[number]) for number in draw(few, rng)) == 2 and len(draw(few, rng)) == 2 * EACH
    assert len(draw(np.ones(3, dtype=bool), rng)) == 3


@pytest.mark.parametrize(
    ("before", "after", "queries", "expected"),
    [
        (0.2, 0.3, 400, "Yes: R@1 20.0% to 30.0% (+10.0)"),
        (0.3, 0.2, 400, "No, it made it worse: R@1 30.0% to 20.0% (-10.0)"),
        (0.2, 0.21, 400, "Not clearly; better by less than 400 queries can tell apart"),
        (0.21, 0.2, 400, "Not clearly; worse by less than 400 queries can tell apart"),
        (0.2, 0.21, 40_000, "Yes"),
        (0.2, 0.2, 400, "No difference at R@1"),
    ],
)
def test_verdicts_follow_from_the_numbers(before: float, after: float, queries: int, expected: str) -> None:
    assert wording.compare((before, 0.5, 0.6), (after, 0.5, 0.6), queries).startswith(expected)


def test_durations() -> None:
    assert [wording.duration(seconds) for seconds in (1.25, 48.4, 725, 3720)] == [
        "1.2 s",
        "48 s",
        "12 min 5 s",
        "1 h 2 min",
    ]


def test_stages_follow_each_other() -> None:
    curve = Curve("loss", ((1, 10.0, 3.0), (2, 20.0, 2.0)))
    stages = (History("a", 2, 25.0, (curve,)), History("b", 2, 30.0, ()), History("c", 2, 40.0, (curve,)))
    parts = joined(stages, "loss")
    points = ((1, 10.0, 3.0), (2, 20.0, 2.0), (5, 65.0, 3.0), (6, 75.0, 2.0))
    assert merged(parts) == Curve("loss", points)


def test_running_mean() -> None:
    y = np.random.default_rng(0).normal(size=30)
    for window in (1, 4, 5):
        reach = (window | 1) // 2
        naive = [y[max(0, place - reach) : place + reach + 1].mean() for place in range(len(y))]
        np.testing.assert_allclose(figures.running_mean(y, window), naive)


def test_charts_share_no_names() -> None:
    curve = Curve("loss", tuple((n, float(n), float(n % 7)) for n in range(100)))
    pair = [figures.draw(Chart((Line(curve, series),), "steps", boundary=40)) for series in (1, 2)]
    page = Page("".join(pair))
    assert page.ids and len(set(page.ids)) == len(page.ids)
    assert "#0" not in pair[0] and "var(--series-1)" in pair[0] and "var(--ink-2)" in pair[0]


@pytest.mark.parametrize("content", ["[]", "{}", '{"name": 7, "run": 3}', "{"])
def test_damaged_run_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipe.json").write_text(content)
    (tmp_path / "log.jsonl").write_text('{"step": 1, "seconds": 1.0, "loss": 2.0}\n')
    with pytest.raises(DualfuseError, match=r"damaged|JSON"):
        report(tmp_path)


def test_names_from_outside_are_texts_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\u2028x"
    recipe = {"name": evil, "run": {"steps": 1}, evil: evil}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 1, "seconds": 1.0, "loss": 2.0, evil: 1.0}) + "\n")
    line = json.dumps({"key": evil, "reason": evil, "step": 1}, ensure_ascii=False)
    (tmp_path / "skipped.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert "<script" not in report(tmp_path).read_text(encoding="utf-8")
