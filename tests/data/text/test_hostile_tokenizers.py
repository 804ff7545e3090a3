"""Tokenizer files of others: bounded before they are parsed, and panics of the library are errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualfuse.data.text.tokenizer import MAX_FILE, TextTransform, bert_tokenizer, load_tokenizer
from dualfuse.errors import DualfuseError


def stored(path: Path, **stages: Any) -> str:
    """Store BERT's tokenizer with other stages."""
    path.write_text(json.dumps(json.loads(bert_tokenizer().to_str()) | stages))
    return str(path)


def replacing(old: dict[str, str], new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": old, "content": new}


@pytest.mark.parametrize("old", [{"String": "a"}, {"Regex": ""}], ids=str)
@pytest.mark.parametrize("stage", ["normalizer", "decoder"])
def test_exponential_growth_is_refused(stage: str, old: dict[str, str], tmp_path: Path) -> None:
    inner = [replacing(old, "a" * 10)] * 12
    stages = {"type": "Sequence", "normalizers" if stage == "normalizer" else "decoders": inner}
    with pytest.raises(DualfuseError, match="times as long"):
        load_tokenizer(stored(tmp_path / "t.json", **{stage: stages}))


def test_usual_replacements_are_accepted(tmp_path: Path) -> None:
    inner = [replacing({"String": old}, new) for old, new in (("``", '"'), ("''", '"'), (" ", "▁"))]
    normalizer = {"type": "Sequence", "normalizers": [*inner, {"type": "Prepend", "prepend": "▁"}]}
    assert load_tokenizer(stored(tmp_path / "t.json", normalizer=normalizer)).vocab_size == 30_522


def test_a_panic_of_the_library_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An expression whose search gives up makes the library panic, with an exception that is no Exception."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    text = TextTransform(16, stored(tmp_path / "t.json", pre_tokenizer=split))
    with pytest.raises(DualfuseError, match="cannot be tokenized"):
        text.encode("a" * 60)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "t.json").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(DualfuseError, match="at most 67 MB"):
        load_tokenizer(str(tmp_path / "t.json"))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DualfuseError, match=r"not a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "deep.json"))


def test_invalid_unicode_is_refused() -> None:
    with pytest.raises(DualfuseError, match="not valid Unicode"):
        TextTransform(16).encode("a \ud800 cat")
