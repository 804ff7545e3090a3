"""Packed rows hold every word once and as many whole sentences as fit, the same for every file format."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import WORDS, tokenizer

from dualfuse.data.sample import BrokenSample
from dualfuse.data.text.corpus import Corpus, pack_share
from dualfuse.data.text.tokenizer import TextTransform


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTransform:
    return TextTransform(12, tokenizer(tmp_path_factory.mktemp("words")))


def sentence(rng: np.random.Generator, most: int) -> str:
    return " ".join([*rng.choice(WORDS, rng.integers(1, most)), "."]).replace(" .", ".").capitalize()


def documents(number: int, most: int = 8) -> list[list[str]]:
    """Sentences; the tokenizer splits off the full stop, so one of w words has w + 1 tokens."""
    rng = np.random.default_rng(number)
    return [[sentence(rng, most) for _ in range(rng.integers(1, 9))] for _ in range(number)]


def write(folder: Path, kind: str, content: list[list[str]]) -> Path:
    """One file of the kind; a sentence a line in every second document, a paragraph in the others."""
    texts = [("\n" if number % 2 else " ").join(lines) for number, lines in enumerate(content)]
    path = folder / f"text{kind}"
    if kind == ".txt":
        path.write_text("\ufeff\n\n" + "\n \r\n".join(texts))
    elif kind == ".jsonl":
        path.write_text("\n".join(json.dumps({"id": 1, "text": each}) for each in texts) + "\n\n")
    elif kind == ".parquet":
        pq.write_table(pa.table({"text": texts, "id": list(range(len(texts)))}), path, row_group_size=3)
    else:
        with tarfile.open(path, "w") as tar:
            for number, each in enumerate(texts):
                data = each.encode() if number % 3 else json.dumps({"text": each}).encode()
                info = tarfile.TarInfo(f"{number:03}.{'txt' if number % 3 else 'json'}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def rows(corpus: Corpus) -> list[str]:
    return [sample.texts[0] for sample in corpus]


def tokens(words: str) -> int:
    return len(words.replace(".", " .").split())


def packed_naively(content: list[list[str]], budget: int) -> list[str]:
    found = []
    for lines in content:
        row = ""
        for line in lines:
            joined = f"{row} {line}".strip()
            if row and tokens(joined) > budget:
                found.append(row)
                joined = line
            row = joined
        found.append(row)
    return found


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet", ".tar"])
def test_rows_are_consecutive_sentences_of_one_document(tmp_path: Path, text: TextTransform, kind: str) -> None:
    content = documents(40)
    corpus = Corpus.open(write(tmp_path, kind, content), text)
    assert rows(corpus) == packed_naively(content, budget=10)
    assert not any(text.encode(row).truncated for row in rows(corpus))
    assert len({corpus.key(n) for n in range(len(corpus))}) == len(corpus) > 60
    sample = corpus[-1]
    assert sample.key == f"text{kind}/{len(corpus) - 1}" and sample.image == b"" and corpus.broken == 0
    assert rows(pickle.loads(pickle.dumps(corpus))) == rows(corpus)


def test_a_too_long_sentence_is_split_between_words(tmp_path: Path, text: TextTransform) -> None:
    words = ["red", "cat"] * 12
    path = tmp_path / "long.txt"
    path.write_text("a dog runs\n" + " ".join(words) + "\nthe fish sleeps\n")
    assert rows(Corpus.open(path, text)) == [
        "a dog runs",
        " ".join(words[:10]),
        " ".join(words[10:20]),
        " ".join(words[20:]) + " the fish sleeps",
    ]


@pytest.mark.parametrize(
    ("follows", "first_sentence"),
    [
        ("Big e.g. dog runs a house.", ""),
        ("Big B. House runs the dog.", ""),
        ("Big tree 3.5 dog runs the cat.", ""),
        ("Big tree! Dog runs the cat.", "Big tree!"),
        ('Big "fish!" Dog runs the cat.', 'Big "fish!"'),
        ("Big tree\ndog runs the house cat", "Big tree"),
    ],
)
def test_ends_of_sentences(tmp_path: Path, text: TextTransform, follows: str, first_sentence: str) -> None:
    """Five tokens of ten are taken; what follows has more than five, its possible first sentence fewer."""
    path = tmp_path / "ends.txt"
    path.write_text("Red red red red. " + follows)
    assert rows(Corpus.open(path, text))[0] == f"Red red red red. {first_sentence}".strip()


def test_chinese_is_split_between_characters(tmp_path: Path) -> None:
    """No spaces, and every character is a word of BERT's."""
    path = tmp_path / "chinese.txt"
    path.write_text("\u4e2d\u56fd\u4eba" * 9)
    lines = rows(Corpus.open(path, TextTransform(12)))
    assert list(map(len, lines)) == [10, 10, 7] and "".join(lines) == "\u4e2d\u56fd\u4eba" * 9


def test_broken_lines_are_counted_and_named(tmp_path: Path, text: TextTransform) -> None:
    path = tmp_path / "broken.jsonl"
    lines = [
        b'{"text": "a cat runs"}',
        b"{no json",
        b'{"caption": "a"}',
        b"[1]",
        b'{"text": 3}',
        b'{"text": "\\ud800"}',
    ]
    path.write_bytes(b"\n".join([*lines, b'{"text": "\xff"}', b'{"text": "the dog"}']))
    corpus = Corpus.open(path, text)
    assert (len(corpus), corpus.broken) == (8, 6)
    reasons = ("is not JSON", "no 'text' that is a string, but caption", "but list", "but text", "half", "is not UTF-8")
    for number, reason in enumerate(reasons, start=1):
        with pytest.raises(BrokenSample, match=rf"^broken.jsonl/{number}: the line at byte \d+ .*{reason}"):
            corpus[number]
    assert corpus[0].texts == ("a cat runs",) and corpus[7].texts == ("the dog",)

    path = tmp_path / "broken.txt"
    path.write_bytes(b"a cat\nthe \xff dog\nruns\n")
    corpus = Corpus.open(path, text)
    assert (len(corpus), corpus.broken) == (3, 1)
    with pytest.raises(BrokenSample, match=r"^broken.txt/1: the line at byte 6 is not UTF-8"):
        corpus[1]
    assert (corpus[0].texts, corpus[2].texts) == (("a cat",), ("runs",))  # not joined over the gap

    table = tmp_path / "nulls.parquet"
    pq.write_table(pa.table({"text": ["a cat", None]}), table)
    with pytest.raises(BrokenSample, match="row 1 has no 'text'"):
        Corpus.open(table, text)[1]


def test_rows_are_stored_and_packed_again_when_the_file_changes(
    tmp_path: Path, text: TextTransform, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, ".txt", documents(9))
    first = rows(Corpus.open(path, text))
    assert rows(Corpus.open(path, text)) == first and len(caplog.messages) == 1
    assert "packing" in caplog.messages[0] and "of 12 tokens" in caplog.messages[0]
    longer = rows(Corpus.open(path, TextTransform(20, text.tokenizer)))
    assert len(longer) < len(first) and len(caplog.messages) == 2
    assert rows(Corpus.open(path, text)) == first and len(caplog.messages) == 2
    path.write_text("the cat sleeps")
    assert rows(Corpus.open(path, text)) == ["the cat sleeps"]
    kept = next(tmp_path.glob("*.12-*.rows.npy"))
    os.truncate(kept, 100)
    assert rows(Corpus.open(path, text)) == ["the cat sleeps"]
    kept.unlink()
    kept.mkdir()  # cannot be written
    assert rows(Corpus.open(path, text)) == ["the cat sleeps"]


def test_processes_share_the_packing_of_several_files(
    tmp_path: Path, text: TextTransform, caplog: pytest.LogCaptureFixture
) -> None:
    content = documents(12)
    for number, part in enumerate((content[:5], content[5:9], content[9:])):
        (tmp_path / f"{number}").mkdir()
        write(tmp_path, ".txt", part).rename(tmp_path / f"{number}.txt")
    for rank, packed in ((0, 2), (1, 3)):
        pack_share(tmp_path, text, part=rank, of=2)
        assert len(caplog.messages) == packed
    corpus = Corpus.open(tmp_path / "*.txt", text)
    assert len(caplog.messages) == 3  # nothing is packed again
    assert rows(corpus) == packed_naively(content, budget=10)
    assert {corpus.key(n).split("/")[0] for n in range(len(corpus))} == {"0.txt", "1.txt", "2.txt"}
    assert all(corpus.key(a) != corpus.key(b) for a, b in pairwise(range(len(corpus))))


def test_files_without_text_are_refused(tmp_path: Path, text: TextTransform) -> None:
    (tmp_path / "a.txt.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text("{\n{\n")
    (tmp_path / "bad.parquet").write_text("no")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "other.parquet")
    for name, match in {
        "nothing": r"no text \(.txt, .jsonl, .parquet or .tar\) matches .*nothing; .* holds a.txt.gz, ",
        "a.txt.gz": r"ends in '.gz'; text is read from .txt, .jsonl, .parquet, .tar; unpack it",
        "empty.txt": r"empty.txt: no text in 1 file\(s\)$",
        "bad.jsonl": r"no text in 1 file\(s\); the first of 2 broken lines: bad.jsonl/0: the line at byte 0 is not",
        "bad.parquet": "bad.parquet is not a Parquet file",
        "other.parquet": "other.parquet has no column 'text', but caption",
    }.items():
        with pytest.raises(ValueError, match=match):
            Corpus.open(tmp_path / name, text)
