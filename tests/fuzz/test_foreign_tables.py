"""Every table and every JSON file of captions or questions gives items or a DualfuseError."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from damaged import changed_json, damaged, told, values
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from tiny import png_image

from dualfuse.prepare.checks import ItemChecker
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import _Conversion, prepare
from dualfuse.prepare.registry import recognize
from dualfuse.prepare.sources.source import Item, readable

ROWS = [
    {"image": "a.png", "caption": "a cat", "split": "train"},
    {"image": "b.png", "caption": "two\ncats", "split": "val"},
]
NAMES = (
    "image",
    "caption",
    "captions",
    "split",
    "images",
    "annotations",
    "sentences",
    "raw",
    "filename",
    "image_id",
    "id",
)
KARPATHY = {
    "images": [{"filename": "a.jpg", "filepath": "x", "split": "val", "sentences": [{"raw": "a cat"}], "cocoid": 3}]
}
CAPTIONS = {"images": [{"id": 3, "file_name": "a.jpg"}], "annotations": [{"image_id": 3, "caption": "a cat"}]}
QUESTIONS = {"questions": [{"question_id": 1, "image_id": 3, "question": "what?"}]}
ANSWERS = {
    "annotations": [
        {
            "question_id": 1,
            "answer_type": "other",
            "multiple_choice_answer": "cat",
            "answers": [{"answer_id": 1, "answer": "cat"}],
        }
    ]
}
GENOME = [{"id": 3, "qas": [{"qa_id": 1, "image_id": 3, "question": "what?", "answer": "A cat."}]}]
REGIONS = [{"id": 3, "regions": [{"region_id": 1, "image_id": 3, "phrase": "a cat", "x": 1}]}]
NLVR2 = {
    "identifier": "train-1-0-0",
    "sentence": "two cats",
    "label": "True",
    "left_url": "",
    "right_url": "",
    "synset": "x",
}
SNLI = {"gold_label": "neutral", "sentence2": "a cat", "Flickr30K_ID": "12", "pairID": "12#0"}


def separated(mark: str) -> bytes:
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    return "\r\n".join(mark.join(f'"{cell}"' for cell in line) for line in lines).encode()


def columns() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file.getvalue()


def read(path: Path) -> list[object]:
    """Run ``prepare`` up to the check of each item."""
    kind, place = recognize(path)
    opened = _Conversion(kind, place, path / "out", PrepareOptions()).open()
    check = ItemChecker()

    def items() -> Iterator[Item]:
        yield from readable(opened.items, place, kind)

    return [check(item) for item in items()]


FILES = {
    "t.csv": separated(","),
    "t.tsv": separated("\t"),
    "t.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "t.json": json.dumps(ROWS).encode(),
    "t.parquet": columns(),
    "captions.txt": separated(","),
}


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_damaged_tables(name: str, folder: Path, data: st.DataObject) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged(FILES[name])))
    told(lambda: read(path))


@given(
    rows=st.lists(changed_json(ROWS[0], NAMES) | values(NAMES), max_size=4), name=st.sampled_from(("t.jsonl", "t.json"))
)
def test_tables_of_other_values(rows: list[object], name: str, folder: Path) -> None:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) if name == "t.jsonl" else json.dumps(rows))
    told(lambda: read(path))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_a_cell_of_a_megabyte_and_an_unclosed_quotation_mark(name: str, tmp_path: Path) -> None:
    rows = [*ROWS, {"image": "c.png", "caption": "x" * 1_000_000, "split": "train"}, *ROWS]
    text = "\n".join(map(json.dumps, rows))
    if name == "t.csv":
        text = "\n".join(
            ["image,caption,split", *(",".join(map(json.dumps, row.values())) for row in rows), 'd.png,"open']
        )
    (tmp_path / name).write_text(text)
    found = read(tmp_path / name)
    assert len(found) >= 2


def test_invalid_unicode_skips_one_row(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(png_image(number))
    half, other = {"image": "a.png", "caption": "half \ud800"}, {"image": "\udc00.png", "caption": "x"}
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, [half, other, {"image": "b.png", "caption": "a cat"}])))
    summary = prepare(tmp_path / "t.jsonl", tmp_path / "out", PrepareOptions(num_workers=1))
    assert summary.tally.samples == 1 and summary.tally.skipped == {"invalid Unicode": 2}
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["name"] for line in skipped] == ["a.png", "\udc00.png"]


PUBLISHED = {
    "dataset_coco.json": KARPATHY,
    "captions_train2017.json": CAPTIONS,
    "v2_OpenEnded_mscoco_train2014_questions.json": QUESTIONS,
    "v2_mscoco_train2014_annotations.json": ANSWERS,
    "question_answers.json": GENOME,
    "region_descriptions.json": REGIONS,
    "train.json": NLVR2,
    "snli_ve_train.jsonl": SNLI,
}


@pytest.mark.parametrize("name", PUBLISHED)
@given(data=st.data())
def test_published_data_sets(name: str, folder: Path, data: st.DataObject) -> None:
    if name.startswith("v2"):
        for other, content in list(PUBLISHED.items())[2:4]:
            (folder / other).write_text(json.dumps(content))
    (folder / name).write_text(json.dumps(data.draw(changed_json(PUBLISHED[name], (*NAMES, "qas", "answers")))))
    told(lambda: read(folder if name.startswith("v2") else folder / name))
