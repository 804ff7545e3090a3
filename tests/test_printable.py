"""Foreign texts reach a terminal, a spreadsheet or a card as texts only."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import pytest
from rich.table import Table

from dualfuse.cli import main as cli
from dualfuse.cli.console import echo
from dualfuse.printable import brief, code, csv_line, json_line, markdown, printable
from dualfuse.progress import PlainConsole

PACKAGE = Path(cli.__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 猫 👩\u200d🚀\u3000x", "café 猫 👩\u200d🚀\u3000x"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb\x9bc\x07", "a\\rb\\x9bc\\x07"),
        ("\u202etxt.exe\u2028", "\\u202etxt.exe\\u2028"),
        ("half \ud800", "half \\ud800"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable("two\nlines", "\n") == "two\nlines"


def test_long_texts_are_cut() -> None:
    assert brief("a" * 100) == "a" * 100
    assert brief("a" * 5000) == "a" * 100 + "… (5,000 characters)"


def test_json_lines_are_json_that_a_terminal_can_show() -> None:
    value = {"name": "\x1b\x9b\u202e \ud800 猫", "date": Path("a")}
    line = json_line(value)
    assert line.isprintable() and "猫" in line
    assert json.loads(line) == value | {"date": "a"}


@pytest.mark.parametrize(
    "cell", ["=1+1", "+cmd", "-2+3", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1", "x;=1+1", 'a"b\nc']
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_no_cell_is_a_formula(cell: str, separator: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_line([cell, "end"]), newline=""), delimiter=separator))
    assert not any(each.lstrip()[:1] in tuple("=+-@\uff1d") for row in rows for each in row if each)
    (row,) = csv.reader(io.StringIO(csv_line([cell, "end"]), newline=""))
    assert row[0].removeprefix("'") == cell and row[1] == "end"


def test_numbers_and_plain_texts_stay() -> None:
    assert csv_line(["-3", -0.5, 1, None, "a cat", "dev-0-0"]) == "-3,-0.5,1,,a cat,dev-0-0\n"


def test_markdown_has_no_markup() -> None:
    assert markdown("x\n\n## EVIL <script> [a](b) `c` | d") == (
        "x\\\\n\\\\n\\#\\# EVIL &lt;script&gt; \\[a\\](b) \\`c\\` \\| d"
    )
    assert code("a`b\n# c") == "`a'b\\n# c`"


def test_console_escapes_and_has_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[red]name")
    table.add_row("\x1b[31m[/x]")
    PlainConsole().print(table)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\\x1b[31m[/x]" in printed and "[red]name" in printed


def test_echo_escapes_what_the_stream_cannot_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    echo("a 猫 \x1b\nb")
    assert stream.buffer.getvalue() == b"a \\u732b \\x1b\nb\n"


def test_errors_and_logs_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("doctor", f"{tmp_path}/\x1b[31m"), ("train", "\x1b[31m.py:x"), ("search", "\x1b", "\x1b", "\x1b")):
        assert cli.main(words) == 2
    for words in (("search", "m", "i", "q", "\x1b[31m"), ("train", "ten-seconds", "--\x1b")):
        with pytest.raises(SystemExit):
            cli.main(words)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and "\\x1b" in printed.err


def test_only_the_two_consoles_print() -> None:
    """A new ``print`` or ``rich`` console would print foreign texts as they are."""
    for path in PACKAGE.rglob("*.py"):
        calls = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Call)]
        names = {each.func.id for each in calls if isinstance(each.func, ast.Name)}
        assert not names & {"print", "Console"} or path.name == "console.py", path
