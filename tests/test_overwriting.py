"""No command replaces a file of the user, unless --force is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import png_image, samples, shards

from dualfuse.cli import main as cli

MINE = b"mine, and not to be lost"
WITHOUT_OUTPUT = {"measure", "upload", "serve"}
COMMANDS: tuple[tuple[str, str], ...] = (
    ("scores.json", "evaluate model DATA --out FILE"),
    ("answers.json", "evaluate model DATA --answers FILE"),
    ("scores.json", "evaluate model --benchmark scenes --cases 1 --out FILE"),
    ("drawn.png", "evaluate model DATA --save-image FILE"),
    ("answers.csv", "predict model --table table.csv --out FILE"),
    ("hits.png", "search model images cat --save-image FILE"),
    ("e.jsonl", "embed model images --out FILE"),
    ("map.png", "explain model --image 0.png --text cat --save-image FILE"),
    ("doctor.png", "doctor DATA --save-image FILE"),
    ("doctor.json", "doctor DATA --save-image doctor.png"),
    ("mine.json", "recipes ten-seconds --out FILE"),
    ("final/report.html", "report final"),
    ("comparison.html", "report RUN RUN --out FILE"),
    ("demo/report.html", "demo --out demo"),
    ("out/notes.txt", "convert final out --to official"),
    ("out/model.safetensors", "export RUN --out out"),
    ("out/model.safetensors", "average RUN --last 2 --out out"),
    ("out/train-00000.tar", "prepare images out"),
    ("out/skipped.jsonl", "prepare images out"),
    ("out/log.jsonl", "train ten-seconds --out out --data.train DATA --data.validation DATA"),
    ("final/README.md", "card final"),
)
"""Names of the user's file, and the command; FILE is that file."""


def test_every_command_is_tested() -> None:
    assert {command.split()[0] for _, command in COMMANDS} | WITHOUT_OUTPUT == set(cli.COMMANDS)


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[" ".join(pair) for pair in COMMANDS])
def test_files_of_the_user_are_kept(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("final", "images"):
        Path(folder).mkdir()
    for path in (whole / "final").iterdir():
        (Path("final") / path.name).write_bytes(path.read_bytes())
    for path in (Path("0.png"), Path("images/0.png")):
        path.write_bytes(png_image(0))
    Path("images/0.txt").write_text("a cat")
    Path("table.csv").write_text("image,text\n0.png,a cat\n")
    data = shards(tmp_path / "data", samples(4))
    mine = Path(name)
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(MINE)
    words = [{"FILE": name, "DATA": data, "RUN": str(whole)}.get(word, word) for word in command.split()]
    assert cli.main(words) == 2
    assert mine.read_bytes() == MINE
    assert mine.name in capsys.readouterr().err


def test_force_replaces_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = shards(tmp_path / "data", samples(4))
    for name in ("doctor.png", "doctor.json", "mine.json"):
        Path(name).write_bytes(MINE)
    assert cli.main(["doctor", data, "--save-image", "doctor.png", "--force"]) == 0
    assert cli.main(["recipes", "ten-seconds", "--out", "mine.json", "--force"]) == 0
    assert json.loads(Path("doctor.json").read_text()) and json.loads(Path("mine.json").read_text())
    assert Path("doctor.png").read_bytes() != MINE


def test_own_pages_are_written_again(whole: Path, tmp_path: Path) -> None:
    """As rerunning a command is how a page follows its run."""
    for path in ("recipe.json", "log.jsonl"):
        (tmp_path / path).write_bytes((whole / path).read_bytes())
    assert [cli.main(["report", str(tmp_path)]) for _ in range(2)] == [0, 0]
