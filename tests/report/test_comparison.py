"""The page that compares runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from statistics import mean, stdev

import pytest
from tiny import changed

from dualfuse import hub
from dualfuse.cli import main as cli
from dualfuse.errors import DualfuseError
from dualfuse.io import write_json
from dualfuse.recipe import Recipe
from dualfuse.report.comparison import compare

R1 = "validation/text_to_image/R@1"


def run(folder: Path, recipe: Recipe, losses: list[float], recalls: list[float]) -> Path:
    folder.mkdir()
    write_json(folder / "recipe.json", hub.recipe_to_json(recipe))
    lines: list[dict] = []
    for step, loss in enumerate(losses, start=1):
        lines.append({"step": step, "seconds": 2.0 * step, "loss": loss, "samples_per_second": 10.0 * step})
    for step, recall in enumerate(recalls, start=1):
        lines.append({"step": step, "seconds": 2.0 * len(losses), R1: recall})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows(page: str) -> dict[str, list[str]]:
    table = re.search(r'<table class="compared">.*?</table>', page, re.DOTALL)
    assert table
    lines = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", table[0])
    return {name: re.findall(r"<t[dh]>(.*?)</t[dh]>", cells) for name, cells in lines}


def test_table_of_differences_metrics_and_seeds(tiny: Recipe, tmp_path: Path) -> None:
    other = changed(tiny, lr=0.125, itm_weight=0.5)
    runs = [
        run(tmp_path / "a", tiny, [3.0, 2.0], [0.5, 0.25]),
        run(tmp_path / "b", other, [3.0, 1.0], [0.1, 0.2]),
        run(tmp_path / "c", changed(tiny, seed=2), [3.0, 2.5], [0.25, 0.125]),
    ]
    page = compare(runs).read_text()
    assert (tmp_path / "comparison.html").read_text() == page
    table = rows(page)
    assert table[""] == ["a (2 seeds)", "b"] and table["runs"] == ["2", "1"]
    assert table["optim.lr"] == ["0.002", "0.125"] and table["task.itm_weight"] == ["1.0", "0.5"]
    assert "run.seed" not in table and "optim.eps" not in table
    assert table["steps"] == ["2", "2"] and table["samples/s"] == ["15.0", "15.0"]
    assert table["loss, last"] == [f"{mean((2, 2.5)):.4g} ± {stdev((2, 2.5)):.4g}", "1"]
    assert table[f"{R1}, last"] == [f"{mean((0.25, 0.125)):.1%} ± {stdev((0.25, 0.125)):.1%}", "20.0%"]
    assert table[f"{R1}, highest"] == ["37.5% ± 17.7%", "20.0%"]
    assert page.count("<svg") == 2 and "http" not in re.sub(r"http://www\.w3\.org/[^\"]*", "", page)


def test_a_page_is_replaced_and_other_files_are_not(tiny: Recipe, tmp_path: Path) -> None:
    runs = [run(tmp_path / name, changed(tiny, steps=4 + n), [1.0], []) for n, name in enumerate("ab")]
    compare(runs)
    compare(runs)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(DualfuseError, match=r"mine\.html exists and is not a comparison"):
        compare(runs, tmp_path / "mine.html")
    with pytest.raises(DualfuseError, match="given twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(DualfuseError, match=r"not the folder of a run"):
        compare([runs[0], tmp_path])


def test_foreign_text_is_only_displayed(tiny: Recipe, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    runs = [run(tmp_path / "a", tiny, [1.0], []), run(tmp_path / "b<i>", replace(tiny, start_from=evil), [1.0], [])]
    with (runs[0] / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "seconds": 3, f"validation/{evil}": 1.0}) + "\n")
    page = compare(runs).read_text()
    assert evil not in page and escape(evil) in page and "b<i>" not in page


def test_classes_that_are_not_imported_have_no_direction(tiny: Recipe, tmp_path: Path) -> None:
    runs = [run(tmp_path / name, changed(tiny, steps=4 + n), [1.0], [0.5]) for n, name in enumerate("ab")]
    for each in runs:
        recipe = json.loads((each / "recipe.json").read_text())
        recipe["task"]["is"] = "lab.tasks:Mine"
        write_json(each / "recipe.json", recipe)
    table = rows(compare(runs).read_text())
    assert table[f"{R1}, last"] == ["0.5", "0.5"] and f"{R1}, highest" not in table


def test_report_command(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(run(tmp_path / name, changed(tiny, steps=4 + n), [1.0], [])) for n, name in enumerate("ab")]
    assert cli.main(["report", *runs, "--out", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.html'}\n"
    assert cli.main(["report", runs[0]]) == 0 and (tmp_path / "a" / "report.html").is_file()
    assert cli.main(["report", runs[0], "--out", str(tmp_path / "y.html")]) == 2
    assert cli.main(["report"]) == 2
