"""Text is decoded strictly, and its lines end at ``\\n`` and ``\\r\\n`` only."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualfuse.data.text import decode
from dualfuse.data.text.decode import decode_text, parse_json, read_lines, stream_lines
from dualfuse.errors import DualfuseError
from dualfuse.io import to_json
from dualfuse.metrics.vqa import read_vocabulary

LINES = ["café", "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh", "猫"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_unicode_files(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((end.join(LINES) + end).encode(encoding))
    assert read_lines(path) == list(stream_lines(path)) == LINES == list(read_vocabulary(path))


@pytest.mark.parametrize("read", [read_lines, lambda path: list(stream_lines(path)), read_vocabulary])
def test_other_encodings_name_file_line_and_byte(tmp_path: Path, read: object) -> None:
    assert callable(read)
    path = tmp_path / "names.txt"
    path.write_bytes(b"tench\r\ncaf\xe9\n")
    with pytest.raises(DualfuseError, match=r"names.txt is not UTF-8 at byte 4 \(0xe9\) of line 2; .*encoding"):
        read(path)
    path.write_bytes("a cat".encode("utf-16-le"))
    with pytest.raises(DualfuseError, match=r"names.txt has NUL characters in line 1: .*--encoding utf-16-le"):
        read(path)


def test_other_encodings_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("café\n".encode("cp1252"))
    assert read_lines(path, "cp1252") == list(stream_lines(path, "CP1252")) == ["café"]
    assert decode_text("café".encode(), "a.txt", "utf8") == "café"
    assert decode_text("café".encode("utf-8-sig"), "a.txt", "cp1252") == "café"  # the mark decides
    with pytest.raises(DualfuseError, match="the encoding 'cp9' is unknown"):
        read_lines(path, "cp9")
    with pytest.raises(DualfuseError, match=r"a\.txt is not CP1252 at byte 2"):
        decode_text(b"a\x81", "a.txt", "cp1252")


def test_characters_at_the_edge_of_a_block_and_long_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BLOCK", 4)
    monkeypatch.setattr(decode, "MAX_LINE", 8)
    path = tmp_path / "a.txt"
    path.write_text("猫猫猫\né猫é猫é\n")
    assert list(stream_lines(path)) == ["猫猫猫", "é猫é猫é"]
    path.write_bytes(b"abc\n\xe7\x8c")
    with pytest.raises(DualfuseError, match=r"not UTF-8 at byte 1 .* of line 2"):
        list(stream_lines(path))
    path.write_text("0123456789")
    with pytest.raises(DualfuseError, match="a line of more than 8 characters"):
        list(stream_lines(path))


def test_json_has_one_value_of_each_name_and_no_nan() -> None:
    assert parse_json('{"a": "é"}'.encode("utf-16"), "a.json") == {"a": "é"}
    for text in ('{"a": 1, "b": 2, "a": 3}', "{", "[" * 100_000):
        with pytest.raises(DualfuseError, match=r"a\.json is not JSON"):
            parse_json(text, "a.json")
    assert to_json({"a": [float("nan"), 1.5, {"b": float("-inf")}]}) == '{"a": [null, 1.5, {"b": null}]}'
