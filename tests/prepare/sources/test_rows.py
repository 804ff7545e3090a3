"""Tables: every row is read or has a problem that names its line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dualfuse.errors import DualfuseError
from dualfuse.prepare.sources.rows import read_rows


def rows(path: Path, text: str | bytes) -> list[object]:
    """Return the cells of every row, or its problem."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row.problem or list(row.cells.values()) for row in read_rows(path)]


@pytest.mark.parametrize(("name", "separator"), [("t.tsv", "\t"), ("t.csv", ","), ("t.csv", "|"), ("t.csv", ";")])
@pytest.mark.parametrize("later", ["a cow", '5"', '"a cow"', "a cow\n"])
def test_unclosed_quotation_mark_costs_one_row(tmp_path: Path, name: str, separator: str, later: str) -> None:
    lines = ["image|caption", 'a.png|"a cat', "b.png|a dog", f"c.png|{later}"]
    first, *others = rows(tmp_path / name, "\n".join(line.replace("|", separator) for line in lines))
    assert first == "line 2: a quotation mark that is not closed"
    assert others == [
        ["b.png", "a dog"],
        ["c.png", later.strip().removeprefix('"').removesuffix('"' * (later[0] == '"'))],
    ]


def test_unclosed_quotation_mark_in_the_first_column(tmp_path: Path) -> None:
    table = 'caption,image\n"a cat,a.png\na dog,b.png\n5",c.png\n'
    assert rows(tmp_path / "t.csv", table) == [
        "line 2: a quotation mark that is not closed",
        ["a dog", "b.png"],
        ['5"', "c.png"],
    ]


def test_quoted_cells_may_hold_lines_separators_and_quotation_marks(tmp_path: Path) -> None:
    table = 'caption,image\r\n"a cat\r\non a mat, ""asleep""",a.png\r\n "x" , b.png\r\n'
    assert rows(tmp_path / "t.csv", table) == [['a cat\non a mat, "asleep"', "a.png"], ["x", "b.png"]]


def test_unescaped_quotation_marks_in_a_cell_are_kept(tmp_path: Path) -> None:
    assert rows(tmp_path / "t.csv", 'i,c\na,"a "big" cat"\nb,5" of "it"\n') == [
        ["a", 'a "big" cat'],
        ["b", '5" of "it"'],
    ]
    assert rows(tmp_path / "t.tsv", 'i\tc\na\t"Big" cat\n') == [["a", '"Big" cat']]
    (problem,) = rows(tmp_path / "t.csv", 'i,c,d\na,"he said "hi", and left"\n')
    assert "line 2: quotation marks" in str(problem)


def test_blank_lines_and_trailing_separators_are_ignored(tmp_path: Path) -> None:
    assert rows(tmp_path / "t.csv", "\n \nimage,caption,,\n\na.png,a cat\nb.png,a dog,,,\n") == [
        ["a.png", "a cat"],
        ["b.png", "a dog"],
    ]


def test_rows_with_other_numbers_of_cells_say_so(tmp_path: Path) -> None:
    table = "image,caption\na.png,a,b\nb.png\nc.png,c\n"
    problems = ["line 2: 3 cells, but the table has 2 columns", "line 3: 1 cells, but the table has 2 columns"]
    assert rows(tmp_path / "t.csv", table) == [*problems, ["c.png", "c"]]


def test_table_of_one_column_has_no_separator(tmp_path: Path) -> None:
    assert rows(tmp_path / "t.csv", 'text\na cat, a dog; a cow\n"b"\n') == [["a cat, a dog; a cow"], ["b"]]


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="several columns called caption"):
        rows(tmp_path / "t.csv", "image,caption,caption\na.png,a,b\n")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DualfuseError, match="several columns called text"):
        list(read_rows(tmp_path / "t.parquet"))
    first, second = rows(tmp_path / "t.jsonl", '{"c": "a", "c": "b"}\n\n{"c": "d"}\n')
    assert "line 1" in str(first) and "two values called 'c'" in str(first) and second == ["d"]


def test_jsonl_names_the_lines_that_are_not_objects(tmp_path: Path) -> None:
    good, broken, number = rows(tmp_path / "t.jsonl", '\ufeff{"a": 1}\n\n{broken\n7\n')
    assert good == [1] and "line 3 is not JSON" in str(broken) and "line 4 holds a int" in str(number)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_in_unicode(tmp_path: Path, encoding: str) -> None:
    assert rows(tmp_path / "t.csv", "image,caption\na.png,café\u2028x\n".encode(encoding)) == [["a.png", "café\u2028x"]]
    assert rows(tmp_path / "t.jsonl", '{"c": "café"}\n'.encode(encoding)) == [["café"]]


def test_other_encodings_are_refused_before_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("image,caption\na.png,a cat\nb.png,café noir\n".encode("cp1252"))
    with pytest.raises(DualfuseError, match=r"t.csv is not UTF-8 at byte 10 \(0xe9\) of line 3; .*--encoding cp1252"):
        next(read_rows(path))
    assert [row.cells["caption"] for row in read_rows(path, "cp1252")] == ["a cat", "café noir"]


def test_old_macintosh_line_ends_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DualfuseError, match="carriage returns"):
        rows(tmp_path / "t.csv", "image,caption\ra.png,a cat\r")
