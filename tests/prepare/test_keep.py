"""The fields by which people know their items come back from everything that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import png_image

from dualfuse.data.shards.shards import Shards
from dualfuse.doctor.examine import examine
from dualfuse.evaluation.predictions import PredictedAnswer, write_predictions
from dualfuse.prepare.options import PrepareOptions
from dualfuse.prepare.pipeline import prepare
from dualfuse.search.collection import Collection

KEEP = PrepareOptions(num_workers=1, keep=("sku", "price"))


def shop(folder: Path) -> Path:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png_image(min(number, 1)))  # 2 is a copy of 1
    rows = [
        "image,caption,sku,price",
        "0.png,a,A1,9.5",
        "1.png,b,B2,3",
        "./1.png,c,B3,3",
        "2.png,d,C4,",
        "x.png,e,D5,1",
    ]
    (folder / "t.csv").write_text("\n".join(rows))
    return folder / "t.csv"


def test_kept_columns_are_in_samples_and_in_the_list_of_skipped_items(tmp_path: Path) -> None:
    summary = prepare(shop(tmp_path), tmp_path / "out", KEEP)
    assert [sample.meta["keep"] for sample in Shards.open(tmp_path / "out")] == [
        {"sku": "A1", "price": "9.5"},
        {"sku": ["B2", "B3"], "price": "3"},
        {"sku": "C4", "price": ""},
    ]
    (line,) = map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())
    assert (line["name"], line["keep"]) == ("x.png", {"sku": "D5", "price": "1"})
    assert summary.tally.examples == {"missing image": ["x.png (sku D5, price 1)"]}


def test_kept_columns_are_in_findings_and_in_the_metadata_of_search(tmp_path: Path) -> None:
    prepare(shop(tmp_path), tmp_path / "out", KEEP)
    duplicate = next(each for each in examine(tmp_path / "out").findings if each.name == "duplicate image")
    assert duplicate.examples == (
        "train-00000/00000001-1 (1.png, price 3, sku ['B2', 'B3']) = train-00000/00000002-2 (2.png, price , sku C4)",
    )
    collection = Collection.open(tmp_path / "out")
    assert collection.fields(0) == {"name": "0.png", "sku": "A1", "price": "9.5"}
    assert Collection.open(tmp_path).fields(0) == {}  # a file has no such fields


def test_fields_of_json_objects_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_image(0))
    (tmp_path / "a.json").write_text('{"caption": "a", "sku": 7, "price": null, "tags": ["x"]}')
    prepare(tmp_path, tmp_path / "out", PrepareOptions(num_workers=1, keep=("sku", "price", "tags")))
    assert Shards.open(tmp_path / "out")[0].meta["keep"] == {"sku": 7, "price": None, "tags": "['x']"}


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    source = shop(tmp_path)
    with pytest.raises(ValueError, match="no column 'ean'; its columns are image, caption, sku, price"):
        prepare(source, tmp_path / "out", PrepareOptions(num_workers=1, keep=("ean",)))
    source.unlink()
    with pytest.raises(ValueError, match=r"no field .*ean; its fields are: none"):
        prepare(tmp_path, tmp_path / "out", PrepareOptions(num_workers=1, keep=("ean",), images_only=True))


def test_kept_columns_are_in_predictions_as_json_lines(tmp_path: Path) -> None:
    prepare(shop(tmp_path), tmp_path / "out", KEEP)
    samples = Shards.open(tmp_path / "out")
    predictions = [PredictedAnswer(samples.key(number), number, "yes", 0.5) for number in (2, 0)]
    write_predictions(predictions, tmp_path / "answers.jsonl", samples)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["keep"] for line in lines] == [
        {"name": "2.png", "sku": "C4", "price": ""},
        {"name": "0.png", "sku": "A1", "price": "9.5"},
    ]
